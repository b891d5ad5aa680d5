"""The published code's own selections, case by case."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from globalcom2 import Views, select
from globalcom2.selectors.globalcom2 import globalcom2

FOLDER = Path(__file__).parents[1] / "golden"
CASES = json.loads((FOLDER / "reference_cases.json").read_text())
ARRAYS = np.load(FOLDER / "reference_cases.npz")


def load(number: int) -> tuple[dict, Views, dict[str, torch.Tensor]]:
    case = CASES[number]
    arrays = {
        name: torch.from_numpy(ARRAYS[f"{number:02d}_{name}"])
        for name in ("base", "crops", "valid", "ratios", "thumb_keep", "crop_keep")
    }
    views = Views(
        arrays["crops"], arrays["valid"].bool(), (case["rows"], case["cols"]), thumbnail_scores=arrays["base"]
    )
    return case, views, arrays


@pytest.mark.parametrize("number", range(len(CASES)))
def test_published_rounding_keeps_the_recorded_sets(number):
    case, views, arrays = load(number)
    keep = select(views, case["R"], exact=False)
    assert keep.thumbnail.nonzero().flatten().tolist() == sorted(arrays["thumb_keep"].tolist())
    assert torch.equal(keep.crops, arrays["crop_keep"].bool())


@pytest.mark.parametrize("number", range(len(CASES)))
def test_ratios_of_the_crops(number):
    case, views, arrays = load(number)
    batch = Views(views.scores[None], views.valid, views.grid, thumbnail_scores=views.thumbnail_scores[None])
    ratios = globalcom2(batch, case["R"], regions="blocks").ratios[0]
    torch.testing.assert_close(ratios, arrays["ratios"].double(), atol=1e-6, rtol=0)


PAPER = {"allocation": "softmax", "alpha": 0.5}
# Padding and caps move tokens between crops on purpose.
PLAIN = [n for n, case in enumerate(CASES) if ARRAYS[f"{n:02d}_valid"].all() and case["R"] <= 0.5]


@pytest.mark.parametrize("number", PLAIN)
def test_exact_mode_differs_only_by_rounding_where_nothing_is_capped_or_padded(number):
    case, views, _ = load(number)
    exact, published = select(views, case["R"], **PAPER), select(views, case["R"], exact=False)
    assert int(exact.crops.sum() + exact.thumbnail.sum()) == round(case["R"] * (views.crops + 1) * 576)
    per_crop = (exact.crops.sum(1) - published.crops.sum(1)).abs()
    assert int(per_crop.max()) <= 1
    assert not (published.crops & ~exact.crops).any()
