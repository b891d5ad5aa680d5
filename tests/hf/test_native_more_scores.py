"""More families whose images keep their resolution: scores and guides by hand, and what is refused."""

import re
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from families.native_more_stand_ins import cut
from globalcom2 import InputError, UnsupportedModelError, compress
from globalcom2.adapters.families import load_adapter
from native_more_cases import MORE, PICTURES, PIXTRAL, ROW_BY_ROW, SIMILARITY, WINDOWED, case_of, left_clean, sizes_of
from tiny import footprint, picture


@pytest.fixture(params=MORE)
def case(request):
    with left_clean(request.param) as case:
        yield case


@contextmanager
def without_places(model):
    """Learned embeddings of places set to zero: random ones are larger than any picture's texture."""
    tables = [p for n, p in model.named_parameters() if n.endswith(("pos_embedding", "position_embedding_table"))]
    before = [table.detach().clone() for table in tables]
    with torch.no_grad():
        for table in tables:
            table.zero_()
        yield
        for table, own in zip(tables, before, strict=True):
            table.copy_(own)


def test_the_one_textured_corner_gets_the_largest_budget(case):
    """A picture of 30 x 21 tokens at least, which are several windows, one grey but for noise at its right and bottom."""
    name, tiny, _, _ = case
    width, height = {"gemma4": (400, 100), "gemma4_unified": (240, 216)}.get(name, (240, 168))
    pixels = np.full((height, width, 3), 60, np.uint8)
    corner = (slice(2 * height // 3, None), slice(3 * width // 4, None))
    pixels[corner] = np.random.default_rng(0).integers(0, 256, pixels[corner].shape)
    inputs = tiny.inputs([f"a {tiny.tag} b"], [Image.fromarray(pixels)])
    with without_places(tiny.model), compress(tiny.model, 0.2, score="similarity") as compression:
        tiny.model(**inputs)
    ratios = compression.report[0].crop_ratios
    assert len(ratios) > 1
    assert ratios[-1] > 1.5 * max(ratios[:-1])


def places_of_patches(name, height, width):
    """Row and column of each patch of an image of that many tokens, in the order in which a tower reads them."""
    side = {"gemma4": 3, "video_llama_3": 1}.get(name, 2)
    places = [(y, x) for y in range(height * side) for x in range(width * side)]
    if name not in ROW_BY_ROW:
        places.sort(key=lambda p: (p[0] // side, p[1] // side, *p))
    if name in WINDOWED:
        places.sort(key=lambda p: (p[0] // 4, p[1] // 4))
    return side, torch.tensor(places).T


def received(query, key):
    """Attention received by each patch, from queries (heads, patches, dim), scaled, and keys of as many heads or fewer."""
    key = key.repeat_interleave(len(query) // len(key), 0)
    return (query @ key.mT).softmax(-1).mean((0, 1))


@pytest.mark.parametrize("name", [name for name in MORE if name not in SIMILARITY])
def test_scores_read_in_attention(name):
    """Against queries and keys of the unpatched tower's last layer that sees the whole image, patch by patch."""
    tiny, batch, _ = case_of(name)
    base, calls = tiny.model.base_model, []
    stock = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, scale=None, **more):
        calls[-1].append((query * (query.shape[-1] ** -0.5 if scale is None else scale), key))
        return stock(query, key, value, attn_mask=attn_mask, scale=scale, **more)

    layers = [
        module
        for path, module in base.named_modules()
        if re.search(r"\.\d+\.(attn|self_attn|attention)$", path) and not re.search("language_model|audio", path)
    ]
    hooks = [layer.register_forward_pre_hook(lambda *_: calls.append([])) for layer in layers]
    given = {n: x for n, x in batch.items() if n.startswith(("pixel", "image"))}
    with torch.no_grad(), mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", spy):
        base.get_image_features(**given, return_dict=True)
    for hook in hooks:
        hook.remove()
    seen = calls[1 if name in WINDOWED else -1]
    with torch.no_grad(), compress(tiny.model, 0.2, score="received") as compression:
        tiny.model(**batch)
    seen = [pair for query, key in seen for pair in zip(query, key, strict=True)]  # padded images come as one batch
    sizes, start = sizes_of(name, batch), 0
    for n, (image, (height, width)) in enumerate(zip(compression.report, sizes, strict=True)):
        side, (y, x) = places_of_patches(name, height, width)
        query, key = seen[n] if len(seen) == len(sizes) else (own[:, start:] for own in seen[0])
        start += len(y)
        patches = torch.empty(height * side, width * side)
        first = 4 if name == "nemotron_h_omni" else 0  # tokens of the tower's own
        patches[y, x] = received(query[:, : first + len(y)], key[:, : first + len(y)])[first:]
        expected = patches.view(height, side, width, side).mean((1, 3))
        (rows, cols), (tall, wide) = image.layout.grid, image.layout.token_grid
        got = image.scores.view(rows, cols, tall, wide).transpose(1, 2).reshape(rows * tall, cols * wide)
        torch.testing.assert_close(got[:height, :width], expected, atol=1e-4 * float(expected.max()), rtol=1e-4)


@pytest.mark.parametrize("name", MORE)
def test_a_guide_is_the_picture_at_a_third_of_its_size(name):
    """Against what the processor makes of a smaller picture; Gemma 4's would enlarge it, so there its patches are cut here."""
    tiny, batch, _ = case_of(name)
    adapter, base = load_adapter(name).guided("thumbnail"), tiny.model.base_model
    layouts = adapter.layouts(base, batch)
    made = adapter.with_guides(base, adapter.encode_arguments(base, batch), layouts)["pixel_values"]
    token = {"gemma4": 12, "gemma4_unified": 12}.get(name, 8)
    sizes = [(max(1, round(width / 3)), max(1, round(height / 3))) for height, width in sizes_of(name, batch)]
    smaller = [
        picture.resize((width * token, height * token), Image.Resampling.BICUBIC)
        for picture, (width, height) in zip(PICTURES, sizes, strict=True)
    ]
    if token == 12:
        side = adapter.side(base)
        cuts = [cut(picture, side, token // side)[0].flatten(1) for picture in smaller]
        expected, made = torch.cat(cuts), torch.cat([own[: len(c)] for own, c in zip(made, cuts, strict=True)])
    else:
        expected = tiny.inputs([tiny.tag * 3], smaller)["pixel_values"]
        made = made[-len(expected) :]
        if name in PIXTRAL:  # padded to the size of the images
            made = made[..., : expected.shape[-2], : expected.shape[-1]]
    assert made.shape == expected.shape
    assert float((made - expected).abs().mean()) < 0.03 * float(expected.std())


def changed(name, **values):
    """The first prompt of a family's batch with other arguments; None takes one away."""
    call = {**case_of(name)[2][0], **values}
    return {key: value for key, value in call.items() if value is not None}


def test_sizes_that_disagree_are_refused_before_the_tower_runs():
    places = case_of("gemma4")[2][0]["image_position_ids"]
    ones = torch.ones(1, dtype=torch.long)
    calls = [
        ("gemma4", "image_position_ids must be", changed("gemma4", image_position_ids=None)),
        ("gemma4", "image_position_ids must be", changed("gemma4", image_position_ids=places[:, 1:])),
        ("gemma4", "row by row", changed("gemma4", image_position_ids=places.flip(-1))),
        ("gemma4", "row by row", changed("gemma4", image_position_ids=torch.full_like(places, -1))),
        ("gemma4", "multiples of 3", changed("gemma4", image_position_ids=_less_a_row(places))),
        ("video_llama_3", "image_merge_sizes must be 1", changed("video_llama_3", image_merge_sizes=None)),
        ("video_llama_3", "image_merge_sizes must be 1", changed("video_llama_3", image_merge_sizes=2 * ones)),
        ("lighton_ocr", "image_sizes must hold", changed("lighton_ocr", image_sizes=torch.tensor([[4, 40]]))),
        ("qwen3_omni_moe_thinker", "got sound", changed("qwen3_omni_moe_thinker", input_features=ones)),
        ("qwen3_omni_moe_thinker", "image_grid_thw must", changed("qwen3_omni_moe_thinker", image_grid_thw=None)),
    ]
    for name, message, call in calls:
        model = case_of(name)[0].model
        before, ran = footprint(model), []
        spied = mock.patch.object(type(model.base_model), "get_image_features", ran.append)
        with spied, compress(model, 0.2), pytest.raises(InputError, match=message):
            model(**call)
        assert footprint(model) == before
        assert not ran


def _less_a_row(places):
    """Places of an image without its last row of patches."""
    last = places[..., 1].max()
    return torch.where((places[..., 1] == last)[..., None], -1, places)


def test_scores_that_no_tower_has():
    for name, layer, message in (
        ("lfm3_vl", 0, "one with attention"),
        ("muse_glimmer", 0, "one that sees the whole image"),
        ("lighton_ocr", None, "must be 'similarity' for lighton_ocr"),
        ("gemma4_unified", None, "has no vision tower"),
    ):
        with (
            pytest.raises(UnsupportedModelError, match=message),
            compress(case_of(name)[0].model, 0.2, score="received", layer=layer),
        ):
            pass


def test_sides_that_leave_a_row_of_patches_to_no_token():
    """LightOnOCR's processor makes whole patches, of which an odd one belongs to no token."""
    tiny, _, _ = case_of("lighton_ocr")
    inputs = tiny.inputs([f"a {tiny.tag} b"], [picture(132, 148, 1)])
    assert inputs["image_sizes"].tolist() == [[148, 132]]
    with compress(tiny.model, 0.25) as compression:
        tiny.model.generate(**inputs, max_new_tokens=1)
    assert compression.report[0].layout.size == (18, 16)
    assert compression.report.tokens_after == 72
