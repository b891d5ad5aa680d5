"""Images that keep their resolution: what is refused, before the tower runs and with nothing left on the model."""

from contextlib import contextmanager

import pytest
import torch

from families import FAMILIES
from families.native import NATIVE
from globalcom2 import InputError, UnsupportedModelError, compress
from globalcom2.hf.cache import CACHE
from native_cases import GREEDY, PLAIN, case_of, grown, left_clean

GLM = ("glm4v", "glm4v_moe", "glm46v", "glm_ocr")
GRIDS = [name for name in NATIVE if name != "mistral3"]
MROPE = [name for name in NATIVE if name not in PLAIN]


@contextmanager
def refused(name, message, error=InputError, **options):
    """Calls within raise that error in `generate` and in a direct call, and the tower does not run."""
    with left_clean(case_of(name)) as case, compress(case.model, 0.2, **options) as compression:
        ran = []
        base = case.model.base_model
        tower = base.visual if hasattr(base, "visual") else base.vision_tower
        handle = tower.register_forward_pre_hook(lambda *_: ran.append(1))
        calls = []
        try:
            yield case, calls
            assert calls
            for call in calls:
                for run in (lambda call: case.model.generate(**call, **GREEDY), lambda call: case.model(**call)):
                    with pytest.raises(error, match=message):
                        run(call)
        finally:
            handle.remove()
        assert not ran
        assert len(compression.report) == 0


@pytest.mark.parametrize("name", GRIDS)
def test_grids_that_disagree(name):
    """With the pixels, with the placeholders, with anything that an image could be."""
    with refused(name, "image_grid_thw|placeholders|pixel_values") as (case, calls):
        batch, one = case.batch, case.rows[0]
        grid = one["image_grid_thw"]
        calls += [
            {k: v for k, v in one.items() if k != "image_grid_thw"},
            {**one, "image_grid_thw": grid + torch.tensor([0, 2, 0])},
            {**one, "image_grid_thw": grid - torch.tensor([0, 1, 0])},
            {**one, "image_grid_thw": grid[0]},
            {**one, "image_grid_thw": grid[:0]},
            {**one, "pixel_values": one["pixel_values"][:-4]},
            {**batch, "image_grid_thw": batch["image_grid_thw"][:3]},
            {**batch, "image_grid_thw": batch["image_grid_thw"].flip(0)},
            {**batch, "pixel_values": one["pixel_values"], "image_grid_thw": grid},
        ]


@pytest.mark.parametrize("name", GRIDS)
def test_images_of_several_frames(name):
    with refused(name, "one frame per image") as (case, calls):
        t, h, w = case.rows[0]["image_grid_thw"][0].tolist()
        calls.append({**case.rows[0], "image_grid_thw": torch.tensor([[2 * t, h // 2, w]])})


def test_sizes_of_mistral_that_disagree():
    with refused("mistral3", "image_sizes|placeholders|pixel_values") as (case, calls):
        batch, one = case.batch, case.rows[0]
        sizes = one["image_sizes"]
        calls += [
            {k: v for k, v in one.items() if k != "image_sizes"},
            {**one, "image_sizes": sizes + 8},
            {**one, "image_sizes": sizes - 4},
            {**one, "image_sizes": sizes * 0},
            {**one, "image_sizes": sizes[0]},
            {**one, "image_sizes": torch.cat([sizes, sizes], 1)},
            {**one, "image_sizes": "as they are"},
            {**batch, "image_sizes": batch["image_sizes"][:3]},
            {**batch, "image_sizes": batch["image_sizes"].flip(0)},
        ]


@pytest.mark.parametrize("name", MROPE)
def test_positions_that_cannot_be_known_or_are_the_callers(name):
    with refused(name, "mm_token_type_ids") as (case, calls):
        one = case.rows[0]
        types = one["mm_token_type_ids"]
        calls += [
            {k: v for k, v in one.items() if k != "mm_token_type_ids"},
            {**one, "mm_token_type_ids": types[:, 1:]},
            {**one, "mm_token_type_ids": torch.zeros_like(types)},
            {**one, "mm_token_type_ids": types.roll(1)},
        ]
    with refused(name, "position_ids") as (case, calls):
        one = case.rows[0]
        plain = torch.arange(one["input_ids"].shape[1])[None]
        kinds = plain, plain[:, 1:], plain.expand(3, 1, -1), plain.expand(4, 1, -1)
        calls += [{**one, "position_ids": places} for places in kinds]


@pytest.mark.parametrize("name", PLAIN)
def test_positions_by_row_and_column_where_they_are_plain(name):
    with refused(name, "position_ids must be .batch, ") as (case, calls):
        one = case.rows[0]
        plain = torch.arange(one["input_ids"].shape[1])[None]
        calls += [{**one, "position_ids": plain.expand(axes, 1, -1)} for axes in (1, 3)]


def test_positions_of_the_callers_in_calls_that_pass_through():
    """What a limit leaves alone is the unpatched model's call."""
    with left_clean(case_of("qwen2_vl")) as case, torch.no_grad():
        one = case.rows[0]
        call = {**one, "position_ids": 2 * torch.arange(one["input_ids"].shape[1]).expand(4, 1, -1)}
        plain = case.model(**call).logits
        with compress(case.model, max_visual_tokens=10**6):
            assert torch.equal(case.model(**call).logits, plain)


@pytest.mark.parametrize("name", GLM)
def test_videos_of_glm(name):
    """They stand at the image's placeholder."""
    with refused(name, "video", error=(InputError, UnsupportedModelError)) as (case, calls):
        one = case.rows[0]
        video = {"pixel_values_videos": one["pixel_values"], "video_grid_thw": one["image_grid_thw"]}
        text = {k: v for k, v in one.items() if k not in ("pixel_values", "image_grid_thw")}
        calls += [{**one, **video}, {**text, **video, "mm_token_type_ids": 2 * one["mm_token_type_ids"]}]


@pytest.mark.parametrize("name", NATIVE)
def test_new_images_on_a_compressed_cache(name):
    with left_clean(case_of(name)) as case, compress(case.model, 0.2), torch.no_grad():
        one = case.rows[0]
        out = case.model.generate(**one, **GREEDY, return_dict_in_generate=True)
        both = grown(one, torch.cat([out.sequences, one["input_ids"]], 1))
        for types in ("mm_token_type_ids", "moe_mm_token_type_ids"):
            if types in one:
                both[types][:, -one[types].shape[1] :] = one[types]
        pixels = ("pixel_values", "image_grid_thw", "image_sizes")
        both = {k: torch.cat([v, v]) if k in pixels else v for k, v in both.items()}
        with pytest.raises(InputError, match=r"new images|continued"):
            case.model.generate(**both, **GREEDY, **{CACHE: out[CACHE]})
        with pytest.raises(InputError):
            case.model(**one, **{CACHE: out[CACHE]})


@pytest.mark.parametrize("name", NATIVE)
def test_settings_that_mean_nothing_here(name):
    settings = [
        ({"thumbnail_order": "score"}, InputError, "thumbnail_order"),
        ({"exact": False}, InputError, "exact"),
        ({"preset": "published"}, InputError, "exact"),
        ({"thumbnail_weight": 2.0}, InputError, "thumbnail_weight"),
        ({"inside": "fastv"}, UnsupportedModelError, "inside"),
        ({"guide": "thumbnial"}, InputError, "Did you mean 'thumbnail'"),
    ]
    if name in MROPE:
        settings.append(({"positions": "closed"}, (InputError, UnsupportedModelError), "positions must be 'original'"))
    with left_clean(case_of(name)) as case:
        for options, error, message in settings:
            with pytest.raises(error, match=message):
                compress(case.model, 0.2, **options)


def test_layers_of_windows_have_no_scores_of_an_image():
    with left_clean(case_of("qwen2_5_vl")) as case:
        for layer in (0, 2, -1):
            with (
                pytest.raises((InputError, UnsupportedModelError), match="layer"),
                compress(case.model, 0.2, score="received", layer=layer),
            ):
                case.model.generate(**case.batch, **GREEDY)  # fmt: skip
        with compress(case.model, 0.2, score="received", layer=1):
            explicit = case.model.generate(**case.batch, **GREEDY)
        with compress(case.model, 0.2, score="received"):
            assert torch.equal(case.model.generate(**case.batch, **GREEDY), explicit)


def test_guides_are_for_images_without_a_thumbnail():
    for name in ("llava_next", "lfm2_vl"):
        with pytest.raises(InputError, match="guide must be left out"):
            compress(FAMILIES[name]().model, 0.2, guide="pooled")
