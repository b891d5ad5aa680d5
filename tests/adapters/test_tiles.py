"""Families that keep the grid to themselves: which view is whose, which patches make a token, what is refused."""

import copy
import functools

import numpy as np
import pytest
import torch
from PIL import Image

from families.internvl import aya_vision, cohere2_vision, got_ocr2, internvl, qianfan_ocr
from globalcom2 import compress
from globalcom2.adapters.families import load_adapter
from globalcom2.errors import InputError, UnsupportedModelError
from tiny import picture

WIDE, TALL, SMALL = (240, 120), (112, 336), (50, 50)  # 1 x 2 crops, 3 x 1, one view
ALL = [internvl, qianfan_ocr, aya_vision, cohere2_vision, got_ocr2]
SHUFFLED = [internvl, qianfan_ocr, aya_vision, cohere2_vision]


@functools.cache
def cached(make):
    return make()


@pytest.fixture(params=ALL, ids=lambda make: make.__name__)
def tiny(request):
    return cached(request.param)


@pytest.fixture(params=SHUFFLED, ids=lambda make: make.__name__)
def shuffling(request):
    return cached(request.param)


def layouts(tiny, inputs):
    return load_adapter(tiny.model.config.model_type).layouts(tiny.model.base_model, dict(inputs))


def refused(tiny, inputs, error=InputError):
    with compress(tiny.model, 0.3), pytest.raises(error) as caught:
        tiny.model(**inputs)
    return str(caught.value)


@pytest.mark.parametrize("side", ["left", "right"])
def test_views_are_told_apart_without_text_between_images(tiny, side):
    texts = [tiny.tag * 2, "no picture", f"{tiny.tag}x{tiny.tag}\n{tiny.tag}"]
    images = [picture(*size, seed) for seed, size in enumerate((WIDE, TALL, SMALL, WIDE, SMALL))]
    tokenizer = getattr(tiny.processor, "processor", tiny.processor).tokenizer
    tokenizer.padding_side = side
    try:
        found = layouts(tiny, tiny.inputs(texts, images))
    finally:
        tokenizer.padding_side = "left"
    assert [layout.grid for layout in found] == [(1, 2), (3, 1), (0, 0), (1, 2), (0, 0)]
    assert all(layout.known_grid and layout.tokens == 16 for layout in found)
    assert found[0] is found[3]  # one selection for both


def test_the_thumbnail_is_last_in_the_run(tiny):
    layout = layouts(tiny, tiny.inputs([tiny.tag], [picture(*TALL)]))[0]
    assert layout.slots.tolist() == [*range(16, 64), *range(16)]
    views = torch.arange(4)[:, None].expand(4, 16)
    assert load_adapter(tiny.model.config.model_type).arrange(views, layout)[:, 0].tolist() == [3, 0, 1, 2]


def test_a_token_stands_for_a_block_of_patches(shuffling):
    """Rows and columns of patches, sent through the model's own pixel shuffle."""
    base = shuffling.model.base_model
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    places = torch.stack([y, x], -1)[None]
    if hasattr(base, "pixel_shuffle"):
        blocks = base.pixel_shuffle(places.contiguous(), 0.5)
    else:
        blocks = base.multi_modal_projector.pixel_shuffle(places.flatten(1, 2))
    blocks = blocks.reshape(4, 4, 4, 2) // 2  # tokens down and across, patches, place of a patch's block
    ty, tx = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    assert torch.equal(blocks, torch.stack([ty, tx], -1)[:, :, None].expand(4, 4, 4, 2))

    adapter = load_adapter(shuffling.model.config.model_type)
    rows = torch.randn(3, 64 if adapter.cls_index is None else 65)
    patches = rows if adapter.cls_index is None else rows[:, 1:]
    by_hand = torch.nn.functional.avg_pool2d(patches.view(3, 1, 8, 8), 2).view(3, 16)
    torch.testing.assert_close(adapter.scores(base, rows), by_hand)


def test_tokens_of_got_ocr2_lie_row_by_row():
    """A bright spot in the tower's map lights up the token of its place."""
    projector = cached(got_ocr2).model.base_model.multi_modal_projector
    for y, x in ((2, 2), (2, 14), (10, 6)):
        spot = torch.zeros(1, 16, 16, 16)
        spot[:, :, y, x] = 1
        with torch.no_grad():
            change = (projector(spot) - projector(torch.zeros_like(spot)))[0].norm(dim=-1)
        lit = change.view(4, 4).nonzero()
        assert [y // 4, x // 4] in lit.tolist()
        assert (lit - torch.tensor([y, x]) / 4).abs().max() <= 1


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("make", [internvl, qianfan_ocr])
def test_scores_are_the_row_of_cls_in_the_layer_of_the_features(make, layer):
    """Against the attention maps that the eager kernel returns, query and key norms included."""
    tiny = make()
    tiny.model.config.vision_feature_layer = layer
    tower = tiny.model.base_model.vision_tower
    inputs = tiny.inputs([tiny.tag], [picture(*TALL)])
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        maps = tower(inputs["pixel_values"], output_attentions=True).attentions[layer]
    tower.set_attn_implementation("sdpa")
    with compress(tiny.model, 0.3, score="attention") as compression:
        tiny.model(**inputs)
    by_hand = torch.nn.functional.avg_pool2d(maps[-1:, :, 0, 1:].mean(1).view(1, 1, 8, 8), 2).flatten()
    torch.testing.assert_close(compression.report[0].thumbnail_scores, by_hand)


@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_a_blank_picture_warns_and_keeps_its_budget(tiny, ratio):
    blank = Image.fromarray(np.full((224, 336, 3), 200, np.uint8))
    with compress(tiny.model, ratio) as compression:
        with pytest.warns(UserWarning, match="equal budgets"):
            tiny.model(**tiny.inputs([tiny.tag], [blank]))
        unknown = compression.report[0]
        tiny.model(**tiny.inputs([tiny.tag], [picture(336, 224)]))
    known = compression.report[0]
    assert (unknown.grid, known.grid) == ((1, 6), (2, 3))
    assert not unknown.layout.known_grid
    assert int(unknown.kept.sum()) == int(known.kept.sum())
    # As equal as whole tokens allow.
    kept = unknown.kept[: 6 * 16].view(6, 16).sum(1)
    assert kept.max() - kept.min() <= 1


def test_half_precision(tiny):
    """Pixels as the processor returns them, in float32."""
    model = copy.deepcopy(tiny.model).bfloat16()
    inputs = tiny.inputs([tiny.tag, f"{tiny.tag}!"], [picture(*TALL), picture(*WIDE)])
    with torch.no_grad():
        plain = model(**inputs).logits
        with compress(model, 0.5) as compression:
            short = model(**inputs).logits
    assert plain.dtype == short.dtype == torch.bfloat16
    assert [image.grid for image in compression.report] == [(3, 1), (1, 2)]
    assert compression.report.tokens_after == (4 + 3) * 8


def test_video_frames_are_images_of_one_view():
    """As the processor lays them out; its video processor itself needs torchvision."""
    tiny = cached(internvl)
    frames, photo = [picture(60, 60, seed) for seed in range(3)], picture(*TALL)
    inputs = tiny.inputs([f"Frame1: {tiny.tag}\nFrame2: {tiny.tag}\nFrame3: {tiny.tag}\n{tiny.tag}?"], [*frames, photo])
    with compress(tiny.model, 0.25) as compression:
        tiny.model(**inputs)
    assert [image.grid for image in compression.report] == [(0, 0)] * 3 + [(3, 1)]
    assert [int(image.kept.sum()) for image in compression.report] == [4, 4, 4, 16]


def test_pages_of_one_prompt_get_the_same_ratio():
    tiny = cached(got_ocr2)
    pages = [picture(*SMALL, seed) for seed in range(4)]
    inputs = tiny.processor.processor(
        images=[pages], multi_page=True, num_image_tokens=16, crop_to_patches=False, return_tensors="pt"
    )
    with compress(tiny.model, 0.25) as compression, pytest.warns(UserWarning, match="equal budgets"):
        tiny.model(**inputs)
    assert compression.report[0].kept.view(4, 16).sum(1).tolist() == [4] * 4


def test_views_and_placeholders_must_fit(tiny):
    inputs = tiny.inputs([f"{tiny.tag} a"], [picture(*TALL)])
    assert "each of the 3 views" in refused(tiny, {**inputs, "pixel_values": inputs["pixel_values"][:3]})
    gone = (inputs["input_ids"] == tiny.model.config.image_token_id).nonzero()[5, 1]
    fewer = {name: torch.cat([x[:, :gone], x[:, gone + 1 :]], 1) for name, x in inputs.items() if x.ndim == 2}
    assert "16 image placeholders for each of the 4 views" in refused(tiny, {**inputs, **fewer})
    assert "pixel_values must be a tensor (views" in refused(
        tiny, {**inputs, "pixel_values": inputs["pixel_values"][None]}
    )
    odd = inputs["pixel_values"][..., :-1]
    assert f"got {tuple(odd.shape)}" in refused(tiny, {**inputs, "pixel_values": odd})


def test_a_prompt_cut_off_behind_its_image():
    tiny = cached(aya_vision)
    inputs = tiny.inputs([tiny.tag], [picture(*TALL)])
    cut = {name: x[:, :-1] if x.ndim == 2 else x for name, x in inputs.items()}
    assert "tag that ends an image" in refused(tiny, cut)


def test_views_of_another_size_where_the_tower_takes_them():
    """InternViT interpolates its positions."""
    tiny = cached(internvl)
    ids = tiny.model.config.image_token_id
    inputs = {"input_ids": torch.tensor([[5, *[ids] * 36, 6]]), "pixel_values": torch.randn(1, 3, 168, 168)}
    with compress(tiny.model, 0.25) as compression:
        tiny.model(**inputs)
    assert int(compression.report[0].kept.sum()) == 9
    assert "pixel_values" in refused(tiny, {**inputs, "pixel_values": torch.randn(1, 3, 154, 154)})


def test_layers_and_settings_that_are_refused(tiny):
    config = tiny.model.config
    if config.model_type == "got_ocr2":
        with pytest.raises(UnsupportedModelError, match="Pass score='similarity'"):
            compress(tiny.model, 0.3, score="attention")
        return
    with pytest.raises(InputError, match=r"layer must be in \[-4, 3\]"):
        compress(tiny.model, 0.3, score="logits", layer=4)
    if config.model_type == "cohere2_vision":
        return
    own = config.vision_feature_select_strategy
    other = {"default": "full", "full": "default"}[own]
    inputs = tiny.inputs([tiny.tag], [picture(*TALL)])
    assert f"must be {own!r} in a compressed call" in refused(tiny, {**inputs, "vision_feature_select_strategy": other})
    config.vision_feature_select_strategy = other
    try:
        with pytest.raises(UnsupportedModelError, match=f"must be '{own}' for {config.model_type}"):
            compress(tiny.model, 0.3)
    finally:
        config.vision_feature_select_strategy = own


@pytest.mark.parametrize(
    ("make", "where", "name", "value", "message"),
    [
        (internvl, "", "downsample_ratio", 0.3, "downsample_ratio must be one over"),
        (internvl, "vision_config", "image_size", (112, 140), "must be square"),
        (internvl, "vision_config", "image_size", 126, "multiple of 2 patches"),
        (aya_vision, "vision_config", "model_type", "clip_vision_model", "must be of type 'siglip_vision_model'"),
    ],
)
def test_configurations_that_are_refused(monkeypatch, make, where, name, value, message):
    config = cached(make).model.config
    target = getattr(config, where) if where else config
    owner = type(target) if name == "model_type" else target
    monkeypatch.setattr(owner, name, value)
    with pytest.raises(UnsupportedModelError, match=message):
        compress(cached(make).model, 0.3)
