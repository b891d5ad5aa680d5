"""Every method on images that keep their resolution: exact totals, or a clear refusal; none but `globalcom2` sees guides."""

import dataclasses
from functools import cache

import pytest
import torch

from families.native import NATIVE
from globalcom2 import CompressionConfig, InputError, UnsupportedModelError, compress, list_methods, select
from globalcom2.adapters.families import load_adapter
from globalcom2.core.methods import get_method
from globalcom2.hf.compression import Compression
from native_cases import case_of, left_clean
from tiny import picture

IMAGES = [picture(120, 40, 1), picture(56, 40, 2)]
"""5 x 15 tokens in two windows, of which one is padded, and 5 x 7 in one."""
TOTALS = [15, 7]
"""A fifth of them."""
TOWERS = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "paddleocr_vl", "ernie4_5_vl_moe", "kimi_k25", "mistral3"]
"""One family for each vision tower; what the others give a method is made by the same code."""
GUIDED = ("qwen2_5_vl", "qwen3_vl", "paddleocr_vl", "mistral3")
"""Towers that differ in how patches lie; to these, guides of their own are shown."""
REFUSED = {
    "hired": "thumbnail",
    "thumbnail_only": "no thumbnail to keep",
    "hiprune": "reads layer 4",
}
"""Methods that need a thumbnail, or more layers than these towers have, and part of what is said."""
METHODS = [name for name in list_methods() if name not in REFUSED]


@pytest.fixture(params=TOWERS)
def case(request):
    with left_clean(case_of(request.param)) as case:
        yield case


def of_tower(method, case):
    """The method with a further layer that the small towers have: the one of Qwen2.5-VL that sees whole images."""
    found = get_method(method)
    return dataclasses.replace(found, layers=(1,)) if found.layers else method


@cache
def inputs_of_family(name):
    tiny = case_of(name).tiny
    return dict(tiny.inputs([tiny.tag * len(IMAGES)], IMAGES))


def inputs_of(case):
    """Both images in one prompt."""
    return inputs_of_family(case.name)


class Done(Exception):
    """Masks of all images are there."""


def chosen(case, method, **options):
    """Masks (windows, tokens) of both images, without the language model's part."""
    found, config = [], CompressionConfig(0.2, method, **options)

    def noting(views, known_grid):
        assert views.thumbnail_scores is None
        found.append(select(views, 0.2, config.method, **config.options))
        if len(found) == len(IMAGES):
            raise Done
        return found[-1]

    with torch.no_grad(), pytest.raises(Done), Compression(case.model, config, noting):
        case.model(**inputs_of(case))
    return [keep.crops[0] for keep in found]


def test_the_other_families_are_like_one_of_these():
    assert {type(load_adapter(name)) for name in NATIVE} == {type(load_adapter(name)) for name in TOWERS}


def test_methods_that_work_keep_exact_totals_and_see_no_guide(case):
    """With a guide of its own in the same pass of the tower, each but `globalcom2` keeps the same tokens as without."""
    for name in [*METHODS, "hiprune"]:
        method = of_tower(name, case)
        kept = chosen(case, method)
        assert [int(keep.sum()) for keep in kept] == TOTALS, name
        if name != "globalcom2" and case.name in GUIDED:
            with_guide = chosen(case, method, guide="thumbnail")
            assert all(torch.equal(*pair) for pair in zip(kept, with_guide, strict=True)), name


def test_methods_that_cannot_work_say_why(case):
    for name, message in REFUSED.items():
        if name == "hired" and case.name == "qwen2_5_vl":
            message = "layer must be one that sees the whole image"
        with pytest.raises((InputError, UnsupportedModelError), match=f"{name}.*{message}"):
            compress(case.model, 0.2, name)
    with pytest.raises(InputError, match=r"hired.*no thumbnail"):
        compress(case.model, 0.2, of_tower("hired", case))


def test_deeper_levels_are_merged_like_the_first():
    """Means of cells, in the embeddings and in each level that is added in deeper layers of Qwen3-VL's language model."""
    with left_clean(case_of("qwen3_vl")) as case:
        inputs, base = inputs_of(case), case.model.base_model
        seen, keeps = {}, []

        def noting(views, known_grid):
            keeps.append(select(views, 0.2, "downsample"))
            return keeps[-1]

        hook = base.language_model.register_forward_pre_hook(lambda *call: seen.update(call[2]), with_kwargs=True)
        with torch.no_grad():
            with Compression(case.model, CompressionConfig(0.2), noting) as compression:
                case.model(**inputs)
            hook.remove()
            full = base.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        cells = [cells_of(*pair) for pair in zip(keeps, compression.report, strict=True)]
        assert [len(own) for own in cells] == TOTALS
        assert max(len(cell) for own in cells for cell in own) >= 4
        levels = [full.pooler_output, *full.deepstack_features]
        found = [seen["inputs_embeds"][0, seen["visual_pos_masks"][0]], *seen["deepstack_visual_embeds"]]
        assert len(found) == len(levels) == 3
        for own, level in zip(found, levels, strict=True):
            images = zip(
                torch.cat(list(level)).split([len(i.layout.slots) for i in compression.report]), cells, strict=True
            )
            expected = [image[cell].mean(0) for image, parts in images for cell in parts]
            torch.testing.assert_close(own, torch.stack(expected), atol=1e-5, rtol=1e-4)


def cells_of(keep, image):
    """Per token that stays, in the order of the run, the places in the run of those that were averaged into it."""
    into, tokens = keep.merge.into[0, 1:].flatten().tolist(), image.layout.tokens
    slots = image.layout.slots.tolist()
    owner = {s: s if into[s] < 0 else s // tokens * tokens + into[s] for s in slots}
    return [
        [place for place, slot in enumerate(slots) if owner[slot] == stays]
        for stays, kept in zip(slots, image.kept.tolist(), strict=True)
        if kept
    ]
