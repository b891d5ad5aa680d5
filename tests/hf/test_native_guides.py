"""Guides of kind "thumbnail" in every family: what the tower is given, and what it makes of the images beside them."""

import inspect
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from PIL import Image

from families.native import NATIVE
from globalcom2 import compress
from native_cases import PICTURES, case_of, left_clean, picture_grids


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
    """A third of the image, in the same pass, which changes nothing of the images; as the processor would shrink it."""
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
    assert [tuple(image.thumbnail_map.shape) for image in compression.report] == sizes
