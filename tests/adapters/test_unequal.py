"""A thumbnail with a token grid of its own: what selectors make of it, and the families that have one."""

import functools
from types import SimpleNamespace

import pytest
import torch
from transformers import AttentionInterface

from families import FAMILIES
from globalcom2 import Views, compress, draw_picture, select
from globalcom2.adapters.families import load_adapter
from globalcom2.adapters.tagged import block_means
from globalcom2.core.layout import kept_places, unpacked
from globalcom2.errors import InputError, UnsupportedModelError
from globalcom2.selectors.globalcom2 import globalcom2
from tiny import picture

NAMES = ["lfm2_vl", "minicpmv4_6", "step3p7"]
LAST = ["lfm2_vl", "step3p7"]  # the thumbnail
SIZES = [
    (360, 240),
    (240, 360),
    (64, 64),
    (30, 20),
    (500, 90),
    (90, 500),
    (224, 224),
    (230, 112),
    (112, 230),
    (640, 90),
]


def views(grid, token_grid, thumbnail_grid, batch=(), **more):
    crops, tokens = grid[0] * grid[1], token_grid[0] * token_grid[1]
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(*batch, crops, tokens, generator=generator)
    thumbnail = torch.randn(*batch, thumbnail_grid[0] * thumbnail_grid[1], generator=generator)
    given = {"grid": grid, "token_grid": token_grid, "thumbnail_grid": thumbnail_grid, "thumbnail_scores": thumbnail}
    return Views(scores, **given, **more)


# Selection


@pytest.mark.parametrize("method", ["globalcom2", "uniform", "random"])
@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_totals_are_exact(method, ratio, batch):
    given = views((2, 3), (4, 4), (3, 5), batch)
    keep = select(given, ratio, method)
    thumbnail, crops = keep.thumbnail.sum(-1), keep.crops.sum((-2, -1))
    assert keep.thumbnail.shape == (*batch, 15)
    assert keep.crops.shape == (*batch, 6, 16)
    assert (thumbnail == int(ratio * 15 + 0.5)).all()
    assert (thumbnail + crops == int(ratio * 111 + 0.5)).all()
    layout = unpacked((2, 3), (4, 4), thumbnail_last=True, thumbnail_grid=(3, 5))
    assert kept_places(layout, ratio) == int(ratio * 111 + 0.5)


@pytest.mark.parametrize("crop_mass", ["sum", "mean", "max"])
def test_a_crops_share_is_its_region_of_the_thumbnails_own_grid(crop_mass):
    rows, cols, (height, width) = 2, 3, (3, 5)
    given = views((rows, cols), (4, 2), (height, width), (2,))
    # Cells of the thumbnail cut so fine that each belongs to one crop.
    fine = given.thumbnail_scores.double().view(2, height, width).repeat_interleave(rows, 1).repeat_interleave(cols, 2)
    regions = fine.view(2, rows, height, cols, width)
    mean = regions.mean((2, 4)).flatten(1)
    mass = {"mean": mean, "sum": mean * 576 / (rows * cols), "max": regions.amax((2, 4)).flatten(1)}[crop_mass]
    shares = (mass / 5.0).softmax(-1)
    ratios = globalcom2(given, 0.2, temperature=5.0, crop_mass=crop_mass).ratios
    torch.testing.assert_close(ratios, 0.2 * (1 + shares - shares.mean(-1, keepdim=True)), rtol=0, atol=1e-8)


def test_padded_crops_cover_less_of_the_thumbnail():
    valid = torch.ones(2, 2, 4, 4, dtype=torch.bool)
    valid[:, 0, :, :2] = False  # the two columns on the left of the stitched crops
    given = views((2, 2), (4, 4), (3, 5), (1,), valid=valid.flatten(2).flatten(0, 1))
    fine = given.thumbnail_scores.double().view(3, 5).repeat_interleave(2, 0).repeat_interleave(6, 1)  # 5 per column
    mean = torch.stack([half.mean() for row in fine.split(3) for half in row.split([10, 20], 1)])
    shares = mean.softmax(-1)
    ratios = globalcom2(given, 0.2, temperature=1.0, crop_mass="mean").ratios[0]
    torch.testing.assert_close(ratios, 0.2 * (1 + shares - shares.mean()), rtol=0, atol=1e-8)


def test_the_thumbnails_say_reaches_the_right_tokens():
    thumbnail = torch.zeros(1, 6, 9)
    thumbnail[:, 4:, 6:] = 1.0  # the lower and the right third
    given = Views(torch.zeros(1, 4, 12), None, (2, 2), None, thumbnail.flatten(1), (4, 3), thumbnail_grid=(6, 9))
    stitched = (
        globalcom2(given, 0.2, alpha=1.0, allocation="softmax").crops[0].view(2, 2, 4, 3).transpose(1, 2).reshape(8, 6)
    )
    best = (stitched > 0.99 * stitched.max()).nonzero().tolist()
    assert best == [[6, 4], [6, 5], [7, 4], [7, 5]]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"thumbnail_scores": torch.zeros(15)}, r"thumbnail_scores must be .* \(16,\).* needs thumbnail_grid"),
        ({"thumbnail_scores": torch.zeros(15), "thumbnail_grid": (5, 5)}, r"thumbnail_scores must be .* \(25,\)"),
        ({"thumbnail_scores": torch.zeros(15), "thumbnail_grid": 15}, "thumbnail_grid must be"),
        (
            {"thumbnail_scores": torch.zeros(15), "thumbnail_grid": (3, 5), "features": torch.zeros(5, 16, 8)},
            "features must be None where the thumbnail has a token grid of its own",
        ),
    ],
)
def test_views_that_do_not_fit(more, message):
    with pytest.raises(InputError, match=message):
        Views(torch.zeros(4, 16), grid=(2, 2), **more)


# Families


@functools.cache
def built(name):
    return FAMILIES[name]()


@pytest.fixture(params=NAMES)
def tiny(request):
    return built(request.param)


def layouts(tiny, inputs):
    return load_adapter(tiny.model.config.model_type).layouts(tiny.model.base_model, dict(inputs))


def processors_view(tiny, image):
    """What the image processor itself says it did: grid, and sizes in tokens of its first and last view."""
    if tiny.model.config.model_type == "lfm2_vl":
        info = tiny.processor.image_processor([[image]])
        grid, sizes = (info["image_rows"][0], info["image_cols"][0]), info["spatial_shapes"] // 2
    elif tiny.model.config.model_type == "step3p7":
        grid = tiny.processor.image_processor.grid(image)
        sizes = torch.tensor([[3, 3]] * (grid[0] * grid[1]) + [[6, 6]])
    else:
        info = tiny.processor.image_processor([image], return_tensors="pt")
        grid, sizes = tuple(info["grids"][0]), info["target_sizes"] // 4
    return ((0, 0) if grid == (1, 1) else grid), [tuple(size) for size in sizes.tolist()]


def test_grids_and_sizes_are_those_of_the_processor(tiny):
    images = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    wanted = [processors_view(tiny, image) for image in images]
    assert len({grid for grid, _ in wanted}) > 4
    tag = tiny.tag
    texts = [f"{tag}{tag}\n{tag} a", "none", "\n\n" + f"{tag}\n" * 4, f"b {tag} {tag}\n\n{tag}"]
    found = layouts(tiny, tiny.inputs(texts, images))
    assert [layout.grid for layout in found] == [grid for grid, _ in wanted]
    assert all(layout.known_grid for layout in found)
    last = tiny.model.config.model_type in LAST
    assert [layout.thumbnail_grid for layout in found] == [sizes[-1 if last else 0] for _, sizes in wanted]
    crops = [(layout.token_grid, sizes[0 if last else -1]) for layout, (_, sizes) in zip(found, wanted, strict=True)]
    assert all(ours == theirs for ours, theirs in crops)
    assert any(layout.thumbnail_grid != layout.token_grid for layout in found)
    assert [len(layout.slots) for layout in found] == [sum(h * w for h, w in sizes) for _, sizes in wanted]


def test_what_stays_of_the_prompt_is_what_was_chosen(tiny):
    inputs = tiny.inputs([tiny.tag], [picture(360, 240)])
    with compress(tiny.model, 0.3) as compression:
        tiny.model.generate(**inputs, max_new_tokens=1)
    entry = compression.report[0]
    thumbnail, tokens = entry.layout.thumbnail_tokens, entry.layout.tokens
    others = [tokens] * (entry.layout.views - 1)
    lengths = [*others, thumbnail] if tiny.model.config.model_type in LAST else [thumbnail, *others]
    *crops, last = views = entry.kept.split(lengths)
    own, crops = (last, crops) if tiny.model.config.model_type in LAST else (views[0], views[1:])
    assert torch.equal(own, entry.keep.thumbnail)
    assert torch.equal(torch.stack(list(crops)), entry.keep.crops)


@pytest.mark.parametrize("layer", [-1, 0])
def test_scores_are_those_of_each_view_alone(tiny, layer):
    """Neither padding nor other views have a say, and every token gets the patches under it."""
    images = [picture(360, 240, 1), picture(30, 20, 2), picture(90, 500, 3)]
    inputs = tiny.inputs([f"{tiny.tag} a {tiny.tag}", f"{tiny.tag}"], images)
    with compress(tiny.model, 0.3, score="logits", layer=layer) as compression:
        tiny.model.generate(**inputs, max_new_tokens=1)
    last = tiny.model.config.model_type in LAST
    first = 0
    for entry in compression.report:
        height, width = entry.layout.thumbnail_grid
        patches = row_of_view(tiny, inputs, first + (entry.layout.views - 1 if last else 0), layer)
        factor = round((len(patches) / (height * width)) ** 0.5)
        by_hand = patches.view(height, factor, width, factor).mean((1, 3))
        torch.testing.assert_close(entry.thumbnail_map, by_hand, atol=1e-5, rtol=1e-5)
        first += entry.layout.views


def row_of_view(tiny, inputs, view, layer):
    """The mean query's logits over the patches of one view, from the tower's run on that view alone."""
    if tiny.model.config.model_type == "step3p7":
        return row_of_rotated_view(tiny, inputs, view, layer)
    tower = tiny.model.base_model.vision_tower
    module = tower.encoder.layers[layer].self_attn
    seen = []
    hook = module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        if tiny.model.config.model_type == "lfm2_vl":
            shape = inputs["spatial_shapes"][view : view + 1]
            pixels = inputs["pixel_values"][view : view + 1, : int(shape.prod())]
            mask = torch.ones(pixels.shape[:2], dtype=torch.int32)
            tower(pixel_values=pixels, spatial_shapes=shape, pixel_attention_mask=mask)
        else:
            sizes = inputs["target_sizes"]
            pixels = inputs["pixel_values"].split((sizes.prod(1) * 7).tolist(), 3)[view]
            tower(pixels, target_sizes=sizes[view : view + 1])
        query, key = (p(seen[0][0]).unflatten(-1, (4, -1)).transpose(0, 1) for p in (module.q_proj, module.k_proj))
    hook.remove()
    return (query @ key.mT * key.shape[-1] ** -0.5).mean((0, 1))


def row_of_rotated_view(tiny, inputs, view, layer):
    """The same with the kernel's own queries and keys, which are rotated by then."""
    counts, tower = inputs["num_local_patches"], tiny.model.base_model.vision_model
    ends = (torch.as_tensor(counts) + 1).cumsum(0)
    image = int((view >= ends).sum())
    last = view + 1 == ends[image]
    pixels = inputs["pixel_values"][image] if last else inputs["pixel_values_local"][view - image]
    seen = []

    def kernel(module, query, key, value, mask, **options):
        seen.append((query[0] @ key[0].mT * query.shape[-1] ** -0.5).mean((0, 1)))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2), None

    before = tower.config._attn_implementation
    AttentionInterface.register("seen", kernel)
    tower.set_attn_implementation("seen")
    with torch.no_grad():
        tower(pixels[None])
    tower.set_attn_implementation(before)
    return seen[layer]


def test_a_token_stands_for_the_block_of_patches_that_its_score_is_taken_from():
    height, width = 6, 10
    numbers = torch.arange(height * width, dtype=torch.float32)
    means = block_means(numbers[None], 2, (height // 2, width // 2))[0]
    lfm2 = built("lfm2_vl").model.model.multi_modal_projector
    torch.testing.assert_close(lfm2.pixel_unshuffle(numbers.view(1, height, width, 1)).mean(-1).flatten(), means)
    mini, sizes = built("minicpmv4_6").model.model, torch.tensor([[height, width]])
    index, _, window = mini.vision_tower.vit_merger.get_window_index(sizes)
    torch.testing.assert_close(numbers[index].view(-1, window).mean(1), means)
    merger = SimpleNamespace(merge_kernel_size=(2, 2), merger_times=1, mlp=[lambda x: x.mean(-1, keepdim=True)])
    torch.testing.assert_close(type(mini.merger).forward(merger, numbers[None, :, None], sizes)[0][:, 0], means)


def test_a_step3p7_token_sees_the_block_of_patches_that_its_score_is_taken_from():
    """Its two convolutions look a little beyond the block; what is in the middle of it counts most by far."""
    tower = built("step3p7").model.model.vision_model
    height, width = 8, 12
    patches = torch.zeros(1, 1, height, width, requires_grad=True)
    one = torch.ones(1, 1, 3, 3)
    down = [
        SimpleNamespace(stride=conv.stride, padding=conv.padding) for conv in (tower.downsampler1, tower.downsampler2)
    ]
    tokens = patches
    for conv in down:
        tokens = torch.nn.functional.conv2d(tokens, one, stride=conv.stride, padding=conv.padding)
    assert tokens.shape[2:] == (height // 4, width // 4)
    (reach,) = torch.autograd.grad(tokens[0, 0, 1, 2], patches)
    seen = (reach[0, 0] > 0).nonzero()
    assert seen.amin(0).tolist() == [1, 5]  # the block and three patches before it
    assert seen.amax(0).tolist() == [7, 11]


def test_a_picture_of_a_thumbnail_of_its_own_size(tiny, tmp_path):
    image = picture(360, 240)
    with compress(tiny.model, 0.3, thumbnail_order="score") as compression:
        tiny.model.generate(**tiny.inputs([tiny.tag], [image]), max_new_tokens=1)
    entry = compression.report[0]
    assert entry.thumbnail_map.shape == entry.layout.thumbnail_grid != entry.layout.token_grid
    assert entry.keep.thumbnail.shape == (entry.layout.thumbnail_tokens,)
    draw_picture(image, entry, tmp_path / "kept.png")
    assert (tmp_path / "kept.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["lfm2_vl", "minicpmv4_6"])
def test_calls_that_do_not_fit(name):
    tiny = built(name)
    inputs = tiny.inputs([f"a {tiny.tag}"], [picture(360, 240)])
    sizes = "spatial_shapes" if "spatial_shapes" in inputs else "target_sizes"
    token = tiny.model.config.image_token_id
    ids = inputs["input_ids"][0]
    closing = tiny.processor.tokenizer.convert_tokens_to_ids(["<|image_end|>", "</image>", "</slice>"])
    closing = [number for number in closing if number is not None]
    broken = [
        ({sizes: None}, f"{sizes} must be"),
        ({sizes: inputs[sizes] + 1}, f"{sizes} must be .* multiples of"),
        ({sizes: inputs[sizes].flip(1)}, None),  # as many tokens in every view: another layout, but one that fits
        ({"input_ids": ids[ids == token][None]}, "input_ids must hold"),
        ({"input_ids": torch.cat([ids[:20], ids[21:]])[None]}, "image placeholders"),
        ({"input_ids": ids[~torch.isin(ids, torch.tensor(closing))][None]}, "input_ids must hold"),
    ]
    for change, message in broken:
        call = {name: value for name, value in {**inputs, **change}.items() if value is not None}
        call.pop("attention_mask")
        if message is None:
            assert layouts(tiny, call)[0].thumbnail_grid == layouts(tiny, inputs)[0].thumbnail_grid[::-1]
            continue
        with compress(tiny.model, 0.3), pytest.raises(InputError, match=message):
            tiny.model.generate(**call, max_new_tokens=1)


def test_calls_that_do_not_fit_step3p7():
    tiny = built("step3p7")
    inputs = tiny.inputs([f"a {tiny.tag}"], [picture(360, 240)])
    ids = inputs["input_ids"][0]
    closing = tiny.processor.tokenizer.convert_tokens_to_ids(["<patch_end>", "<im_end>"])
    broken = [
        ({"num_local_patches": [3]}, "num_local_patches must count"),
        ({"num_local_patches": None}, "num_local_patches must count"),
        ({"pixel_values_local": inputs["pixel_values_local"][..., 1:]}, "multiples of 28 px"),
        ({"input_ids": ids[~torch.isin(ids, torch.tensor(closing))][None]}, "input_ids must hold"),
        ({"input_ids": torch.cat([ids[:10], ids[11:]])[None]}, "image placeholders"),
    ]
    for change, message in broken:
        call = {name: value for name, value in {**inputs, **change}.items() if value is not None}
        call.pop("attention_mask")
        with compress(tiny.model, 0.3), pytest.raises(InputError, match=message):
            tiny.model.generate(**call, max_new_tokens=1)


def test_tags_in_another_order_leave_the_grid_unknown():
    tiny = built("lfm2_vl")
    inputs = tiny.inputs([tiny.tag], [picture(360, 240)])
    ids = inputs["input_ids"]
    second = tiny.processor.tokenizer.convert_tokens_to_ids("<|img_row_1_col_2|>")
    ids[ids == second] += 1
    (layout,) = layouts(tiny, inputs)
    assert layout.grid == (1, 6)
    assert not layout.known_grid
    untagged = tiny.processor(
        text=[f"a {tiny.tag} b"], images=[[picture(360, 240)]], return_tensors="pt", use_image_special_tokens=False
    )
    with pytest.raises(InputError, match="image placeholders"):
        layouts(tiny, untagged)


def test_rows_of_different_lengths_leave_the_grid_unknown():
    tiny = built("minicpmv4_6")
    inputs = tiny.inputs([tiny.tag], [picture(360, 240)])
    ids = inputs["input_ids"][0]
    newline = int((ids == tiny.processor.tokenizer("\n").input_ids[0]).nonzero()[0])
    slices = [int(i) for i in (ids == tiny.processor.tokenizer.convert_tokens_to_ids("<slice>")).nonzero()]
    moved = torch.cat([ids[: slices[1]], ids[newline : newline + 1], ids[slices[1] : newline], ids[newline + 1 :]])
    inputs["input_ids"] = moved[None]
    (layout,) = layouts(tiny, inputs)
    assert layout.grid == (1, 6)
    assert not layout.known_grid


def test_minicpm_without_the_merging_of_windows():
    tiny = built("minicpmv4_6")
    inputs = tiny.processor(text=[tiny.tag], images=[picture(360, 240)], return_tensors="pt", downsample_mode="4x")
    with compress(tiny.model, 0.3, score="logits") as compression:
        tiny.model.generate(**inputs, downsample_mode="4x", max_new_tokens=1)
    layout = compression.report[0].layout
    assert layout.thumbnail_grid == tuple((inputs["target_sizes"][0] // 2).tolist())
    assert compression.report.tokens_after == round(0.3 * layout.tower_tokens)


def test_minicpm_refuses_videos_beside_images_and_odd_windows(monkeypatch):
    tiny = built("minicpmv4_6")
    inputs = tiny.inputs([tiny.tag], [picture(360, 240)])
    with compress(tiny.model, 0.3), pytest.raises(InputError, match="two calls"):
        tiny.model.generate(**inputs, pixel_values_videos=inputs["pixel_values"], max_new_tokens=1)
    monkeypatch.setattr(tiny.model.config, "merge_kernel_size", (1, 2))
    with pytest.raises(UnsupportedModelError, match="merge_kernel_size must be"):
        compress(tiny.model, 0.3)


def test_lfm2_needs_its_tower(monkeypatch):
    tiny = built("lfm2_vl")
    monkeypatch.setattr(type(tiny.model.config.vision_config), "model_type", "other")
    with pytest.raises(UnsupportedModelError, match="siglip2_vision_model"):
        compress(tiny.model, 0.3)
