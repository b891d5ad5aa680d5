"""Colours, runs and outlines, each against a slower way to the same."""

import matplotlib
import numpy as np
import pytest

from globalcom2.drawing.marks import heat, outline, runs


@pytest.fixture(params=range(4))
def mask(request):
    rng = np.random.default_rng(request.param)
    return rng.random((rng.integers(1, 9), rng.integers(1, 9))) < 0.45


def test_runs_cover_the_mask(mask):
    again = np.zeros_like(mask)
    for y, first, end in runs(mask):
        assert not again[y, first:end].any()
        assert end == mask.shape[1] or not mask[y, end]
        again[y, first:end] = True
    assert (again == mask).all()


def test_an_outline_parts_kept_from_all_others(mask):
    """Every edge of a kept token whose neighbour is not kept, once, and no other edge."""
    height, width = mask.shape
    expected = set()
    for y, x in zip(*np.nonzero(mask), strict=True):
        for dy, dx, edge in ((-1, 0, (x, y, x + 1, y)), (1, 0, (x, y + 1, x + 1, y + 1)),
                             (0, -1, (x, y, x, y + 1)), (0, 1, (x + 1, y, x + 1, y + 1))):  # fmt: skip
            inside = 0 <= y + dy < height and 0 <= x + dx < width
            if not inside or not mask[y + dy, x + dx]:
                expected.add(edge)
    found = []
    for x0, y0, x1, y1 in outline(mask):
        steps = max(x1 - x0, y1 - y0)
        dx, dy = (1, 0) if y0 == y1 else (0, 1)
        found += [(x0 + i * dx, y0 + i * dy, x0 + (i + 1) * dx, y0 + (i + 1) * dy) for i in range(steps)]
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_the_heat_map_is_inferno():
    values = np.linspace(-3, 5, 64)[None]
    reference = matplotlib.colormaps["inferno"](np.linspace(0, 1, 64))[None, :, :3] * 255
    assert np.abs(heat(values, -3, 5).astype(float) - reference).max() < 12
    assert (heat(np.zeros((2, 2)), 0, 0) == heat(np.zeros((2, 2)), 0, 1)).all()
