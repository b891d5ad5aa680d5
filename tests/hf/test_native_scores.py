"""Scores of images that keep their resolution, against the unpatched tower's features, queries and keys, in every family."""

import inspect
import math
import re
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from PIL import Image

from families.native import NATIVE
from globalcom2 import compress
from native_cases import PICTURES, case_of, left_clean, picture_grids

ATTENTION = re.compile(r"\.\d+\.(attn|self_attn|attention)$")
ROW_BY_ROW = ("paddleocr_vl", "kimi_k25", "mistral3")


def tower_pass(model, inputs):
    """Per image its features (tokens, dim), and per layer what its attention multiplied: [(query, key, mask, scale)]."""
    base, layers, stack = model.base_model, {}, []
    stock = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, scale=None, **options):
        stack[-1].append((query, key, attn_mask, query.shape[-1] ** -0.5 if scale is None else scale))
        return stock(query, key, value, attn_mask=attn_mask, scale=scale, **options)

    hooks = []
    for name, module in base.named_modules():
        if ATTENTION.search(name) and "language_model" not in name:
            calls = layers[name] = []
            hooks.append(module.register_forward_pre_hook(lambda *_, calls=calls: stack.append(calls)))
    names = inspect.signature(base.get_image_features).parameters
    with torch.no_grad(), mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", spy):
        features = base.get_image_features(**{n: inputs[n] for n in names if n in inputs}, return_dict=True)
    for hook in hooks:
        hook.remove()
    return [f.flatten(0, -2) for f in features.pooler_output], list(layers.values())


def by_image(calls, lengths):
    """Queries (heads, patches, dim), keys and scale of each image; Pixtral reads all images at once."""
    if len(calls) == len(lengths):
        return [(query[0], key[0], scale) for query, key, _, scale in calls]
    ((query, key, _, scale),) = calls
    return [(q, k, scale) for q, k in zip(query[0].split(lengths, 1), key[0].split(lengths, 1), strict=True)]


def of_patches(query, key, scale, score):
    """(patches,)"""
    if score == "mean_query":
        return (query.mean(1, keepdim=True) @ key.mT * scale)[:, 0].mean(0)
    return (query @ key.mT * scale).softmax(-1).mean((0, 1))


def of_tokens(name, patches, height, width):
    """A map (height, width) of the mean over each token's 2 x 2 patches."""
    if name in ROW_BY_ROW:
        return patches.view(height, 2, width, 2).mean((1, 3))
    tokens = patches.view(-1, 4).mean(1)
    if name != "qwen2_5_vl":
        return tokens.view(height, width)
    places = sorted(  # its tower reads windows of 2 x 2 tokens, one after another
        ((y, x) for y in range(height) for x in range(width)), key=lambda p: (p[0] // 2, p[1] // 2, *p)
    )
    found = torch.empty(height, width)
    for (y, x), value in zip(places, tokens, strict=True):
        found[y, x] = value
    return found


def expected_maps(case, score, inputs, grids):
    """One map (height, width) per image of a call of the encoder."""
    features, layers = tower_pass(case.model, inputs)
    if score == "similarity":
        cosines = [torch.cosine_similarity(own, own.mean(0, keepdim=True)) for own in features]
        return [-own.view(grid) for own, grid in zip(cosines, grids, strict=True)]
    calls = layers[1 if case.name == "qwen2_5_vl" else -1]
    images = by_image(calls, [4 * h * w for h, w in grids])
    return [of_tokens(case.name, of_patches(*own, score), *grid) for own, grid in zip(images, grids, strict=True)]


def stitched(image):
    """A report's scores of windows as one map, and which of its places are tokens."""
    (rows, cols), (height, width) = image.layout.grid, image.layout.token_grid
    both = torch.stack([image.scores.float(), image.layout.valid.float()])
    return both.view(2, rows, cols, height, width).transpose(2, 3).reshape(2, rows * height, cols * width)


@pytest.mark.parametrize("score", ["similarity", "mean_query", "received"])
@pytest.mark.parametrize("name", NATIVE)
def test_scores_of_windows_and_of_the_pooled_guide(name, score):
    with left_clean(case_of(name)) as case:
        expected = expected_maps(case, score, case.batch, picture_grids(PICTURES))
        with compress(case.model, 0.2, score=score) as compression, torch.no_grad():
            case.model(**case.batch)
        for image, wanted in zip(compression.report, expected, strict=True):
            (height, width), (got, valid) = wanted.shape, stitched(image)
            assert image.grid == (math.ceil(height / 14), math.ceil(width / 14))
            assert torch.equal(valid.nonzero().amax(0) + 1, torch.tensor([height, width]))
            assert int(valid.sum()) == height * width
            close = 1e-4 * float(wanted.abs().max())
            torch.testing.assert_close(got[:height, :width], wanted, atol=close, rtol=1e-4)
        guide = compression.report[0].thumbnail_map  # 18 x 15 tokens to 6 x 5
        by_hand = expected[0].view(6, 3, 5, 3).mean((1, 3))
        torch.testing.assert_close(guide, by_hand, atol=1e-4 * float(by_hand.abs().max()), rtol=1e-4)


def guide_inputs(inputs, images):
    """The arguments of a pass of the tower without its first images."""
    if "image_sizes" in inputs:
        return {k: inputs[k][images:] for k in ("pixel_values", "image_sizes")}
    grids = inputs["image_grid_thw"]
    return {"pixel_values": inputs["pixel_values"][grids[:images].prod(1).sum() :], "image_grid_thw": grids[images:]}


@contextmanager
def passes_of(base):
    """Arguments and output of every pass of a model's encoder."""
    stock, passes = type(base).get_image_features, []

    def spy(*positional, **named):
        given = inspect.signature(stock).bind(*positional, **named).arguments
        passes.append((given, stock(*positional, **named)))
        return passes[-1][1]

    spy.__signature__ = inspect.signature(stock)
    with mock.patch.object(type(base), "get_image_features", spy):
        yield passes


def levels_of(output, images):
    """Features of the first images, (tokens, dim) each, of every level."""
    levels = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
    sizes = [height * width for height, width in picture_grids(PICTURES)][:images]
    flat = [torch.cat([item.flatten(0, -2) for item in level])[: sum(sizes)] for level in levels]
    return torch.cat(flat)


@pytest.mark.parametrize("name", NATIVE)
def test_a_guide_of_its_own(name):
    """A third of the image, in the same pass, which changes nothing of the images; its scores are its own."""
    with left_clean(case_of(name)) as case, passes_of(case.model.base_model) as passes, torch.no_grad():
        case.model(**case.batch)
        with compress(case.model, 0.2, guide="thumbnail", score="received") as compression:
            case.model(**case.batch)
        (_, alone), (inputs, together) = passes
        own, with_guides = levels_of(alone, len(PICTURES)), levels_of(together, len(PICTURES))
        # Pixtral reads all as one sequence, whose sums another kernel may order anew.
        torch.testing.assert_close(with_guides, own, atol=1e-5 if name == "mistral3" else 0, rtol=0)
        sizes = [(max(1, round(h / 3)), max(1, round(w / 3))) for h, w in picture_grids(PICTURES)]
        guides = guide_inputs(inputs, len(PICTURES))
        smaller = [
            p.resize((w * 8, h * 8), Image.Resampling.BICUBIC) for p, (h, w) in zip(PICTURES, sizes, strict=True)
        ]
        theirs = case.tiny.inputs([case.tiny.tag * 4], smaller)["pixel_values"]
        ours = guides["pixel_values"]
        ours = ours[..., : theirs.shape[-2], : theirs.shape[-1]] if name == "mistral3" else ours
        assert float((ours - theirs).abs().mean()) < 0.03 * float(theirs.std())
        maps = expected_maps(case, "received", guides, sizes)
    for image, wanted in zip(compression.report, maps, strict=True):
        torch.testing.assert_close(image.thumbnail_map, wanted, atol=1e-4 * float(wanted.max()), rtol=1e-4)
