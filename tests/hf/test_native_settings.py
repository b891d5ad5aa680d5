"""Settings of images that keep their resolution: guides by every way there is, presets, limits in tokens, older files."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from families import FAMILIES
from families.native import NATIVE
from globalcom2 import CompressionConfig, InputError, apply, compress, current, remove
from globalcom2.adapters.families import load_adapter
from native_cases import PICTURES, PLAIN, case_of, left_clean, picture_grids
from tiny import llava_next, picture

SEVERAL = ["qwen2_5_vl", "mistral3"]
"""Positions by row and column, and plain ones. Settings know nothing else of a family."""
BEFORE = [height * width for height, width in picture_grids(PICTURES)]


@pytest.fixture(params=SEVERAL)
def case(request):
    with left_clean(case_of(request.param)) as case:
        yield case


def called(case, *args, **options):
    """The report of a call with all prompts, and its last logits."""
    with torch.no_grad(), compress(case.model, *args, **options) as compression:
        logits = case.model(**case.batch).logits[:, -1]
    return compression.report, logits


# Guides


def test_a_guide_is_a_setting_of_families_without_a_thumbnail_alone():
    for name in FAMILIES:
        adapter = load_adapter(name)
        assert adapter.guided(None) is adapter
        with pytest.raises(InputError, match="guide must be left out for a family whose images have a thumbnail"):
            adapter.guided("thumbnail")
    for name in NATIVE:
        adapter = load_adapter(name)
        assert adapter.guided(None) is adapter
        assert adapter.guide == "pooled"
        assert adapter.guided("thumbnail").guide == "thumbnail"
        assert adapter.guide == "pooled", "an adapter has no state"
    with pytest.raises(InputError, match="guide must be left out"):
        compress(llava_next().model, 0.2, "globalcom2:guide=pooled")


def test_all_ways_to_ask_for_a_guide_are_one(tmp_path):
    case = case_of("paddleocr_vl")
    config = CompressionConfig(0.2, guide="thumbnail")
    config.save_pretrained(tmp_path)
    report, expected = called(case, 0.2, guide="thumbnail")
    for args, options in (
        ((0.2, "globalcom2:guide=thumbnail"), {}),
        ((), {"config": config}),
        ((), {"config": CompressionConfig.from_pretrained(tmp_path)}),
        ((0.2,), {"config": CompressionConfig(guide="pooled"), "guide": "thumbnail"}),
    ):
        assert torch.equal(called(case, *args, **options)[1], expected)
    apply(case.model, 0.2, guide="thumbnail")
    try:
        with torch.no_grad():
            assert torch.equal(case.model(**case.batch).logits[:, -1], expected)
        assert [image.tokens_after for image in current(case.model).report] == [i.tokens_after for i in report]
    finally:
        remove(case.model)
    assert not torch.equal(called(case, 0.2, guide="pooled", alpha=1.0)[1], called(case, config=config, alpha=1.0)[1])
    assert torch.equal(called(case, 0.2)[1], called(case, 0.2, guide="pooled")[1])


def test_texts_dictionaries_and_models_give_a_guide_back():
    config = CompressionConfig(0.2, "globalcom2:guide=thumbnail,alpha=0.3")
    assert (config.guide, config.options) == ("thumbnail", {"alpha": 0.3})
    assert config.method_text == "globalcom2:guide=thumbnail,alpha=0.3"
    assert CompressionConfig(0.2, config.method_text) == CompressionConfig.from_dict(config.to_dict()) == config
    assert "guide='thumbnail'" in repr(config)
    assert config.preset is None
    assert CompressionConfig(0.2).guide is None
    assert config.replace(guide=None).guide is None
    with pytest.raises(InputError, match="guide must be one of pooled, thumbnail"):
        CompressionConfig(0.2, guide="crop")


def test_a_model_keeps_a_guide_in_its_configuration():
    with left_clean(case_of("qwen3_5")) as case:
        CompressionConfig(0.2, guide="thumbnail").attach(case.model)
        try:
            assert CompressionConfig.of(case.model) == CompressionConfig(0.2, guide="thumbnail")
        finally:
            for name in [name for name in vars(case.model.config) if name.startswith("globalcom2")]:
                delattr(case.model.config, name)


# Positions and presets


@pytest.mark.parametrize("name", ["qwen2_vl", "glm4v", "ernie4_5_vl_moe", *PLAIN])
def test_each_family_has_positions_of_its_own_where_none_are_asked_for(name):
    with left_clean(case_of(name)) as case:
        _, default = called(case, 0.2)
        kinds = {"closed", "original"} if name in PLAIN else {"original"}
        equal = {kind for kind in kinds if torch.equal(called(case, 0.2, positions=kind)[1], default)}
        assert equal == ({"closed"} if name in PLAIN else {"original"})


def test_the_papers_preset(case):
    report, logits = called(case, 0.2, preset="paper")
    assert [image.tokens_after for image in report] == [max(1, math.floor(n / 5 + 0.5)) for n in BEFORE]
    same = {"layer": -1, "allocation": "softmax", "alpha": 0.5, "newlines": "counted"}
    assert torch.equal(logits, called(case, 0.2, **same)[1])


# Limits in tokens


def test_a_limit_per_image_is_met(case):
    for limit in (1, 51):
        report, _ = called(case, max_visual_tokens=limit)
        assert [image.tokens_after for image in report] == [min(limit, n) for n in BEFORE]
        assert all((image.retention_ratio == 1.0) == (n <= limit) for image, n in zip(report, BEFORE, strict=True))
    report, _ = called(case, 0.1, max_visual_tokens=20)
    assert [image.tokens_after for image in report] == [20, 3, 8, 5]


def test_a_limit_per_call_is_met_in_proportion(case):
    for limit in (4, 43):
        counts = [image.tokens_after for image in called(case, max_visual_tokens_per_call=limit)[0]]
        assert sum(counts) == limit
        assert min(counts) >= 1
        if limit > 4:
            assert all(abs(n - limit * before / sum(BEFORE)) < 1 for n, before in zip(counts, BEFORE, strict=True))
    with pytest.raises(InputError, match="at least one token per image, got 3 for 4 images"):
        called(case, max_visual_tokens_per_call=3)


def test_limits_that_nothing_exceeds_leave_the_model_alone(case):
    with torch.no_grad():
        plain = case.model(**case.batch).logits[:, -1]
    for name in ("max_visual_tokens", "max_visual_tokens_per_call"):
        report, logits = called(case, **{name: sum(BEFORE)})
        assert torch.equal(logits, plain)
        assert [image.tokens_after for image in report] == BEFORE


def test_ratios_that_follow_the_content(case):
    """Less of a picture with one spot to see; exact for the ratio that an image gets, whatever else is in the call."""
    spot = np.full((128, 112, 3), 200, np.uint8)
    spot[-24:, -24:] = np.random.default_rng(0).integers(0, 256, (24, 24, 3))
    images, tag = [Image.fromarray(spot), PICTURES[0]], case.tiny.tag
    found = []
    for texts, shown in (([f"{tag} a", f"or {tag}"], images), ([f"{tag} a"], images[:1])):
        inputs = case.tiny.inputs(texts, shown)
        with torch.no_grad(), compress(case.model, "auto", auto_floor=0.1, auto_ceiling=0.6) as compression:
            case.model(**inputs)
        found.append([image.retention_ratio for image in compression.report])
        for image in compression.report:
            assert image.tokens_after == max(1, math.floor(image.retention_ratio * image.tokens_before + 0.5))
    (one, other), (alone,) = found
    assert 0.1 <= one < other <= 0.6
    assert alone == pytest.approx(one, abs=2e-4)


# Older files

OLDER = {
    "retention_ratio": 0.25,
    "method": "globalcom2",
    "exact": True,
    "score": None,
    "layer": None,
    "newlines": None,
    "thumbnail_weight": 1.0,
    "positions": "closed",
    "thumbnail_order": "raster",
    "logits": "short",
    "options": {},
}
"""Settings as they were saved when "closed" was the default."""


def test_older_settings_are_followed_as_they_were():
    config = CompressionConfig.from_dict(OLDER)
    tiny = llava_next()
    inputs = tiny.inputs([f"a {tiny.tag} b"], [picture(168, 168)])
    logits = []
    for options in ({"config": config}, {"retention_ratio": 0.25}):
        with torch.no_grad(), compress(tiny.model, **options):
            logits.append(tiny.model(**inputs).logits)
    assert torch.equal(*logits)


def test_an_engine_follows_older_settings():
    """It numbers tokens without gaps whatever it is told."""
    overrides = CompressionConfig.from_dict(OLDER).vllm_overrides()
    (ratio,) = [value for value in overrides.values() if not isinstance(value, str)]
    (text,) = [value for value in overrides.values() if isinstance(value, str)]
    assert ratio == 0.25
    assert CompressionConfig(ratio, text).vllm_overrides() == overrides
    for field in ({"positions": "original"}, {"guide": "thumbnail"}):
        with pytest.raises(InputError, match=f"{next(iter(field))} must be left out for a vLLM engine"):
            CompressionConfig.from_dict({**OLDER, **field}).vllm_overrides()


def test_an_older_file(tmp_path):
    """Of format 1, which wrote "closed" out: it was the default, and is none now."""
    path = CompressionConfig(0.25).save_pretrained(tmp_path)
    older = {**json.loads(path.read_text()), "format_version": 1, "positions": "closed"}
    del older["guide"]
    path.write_text(json.dumps(older))
    loaded = CompressionConfig.from_pretrained(tmp_path)
    assert loaded == CompressionConfig(0.25)
    assert loaded.preset == "default"
    kept = CompressionConfig(0.25, positions="closed")
    kept.save_pretrained(tmp_path)
    assert CompressionConfig.from_pretrained(tmp_path) == kept
    assert kept.vllm_overrides()  # an engine numbers tokens so
