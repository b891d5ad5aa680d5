"""Images that keep their resolution: compressed calls against two oracles, in every family.

A left-padded batch of four unlike prompts (one image, two, none, one; portrait and landscape; one window and several).
"""

import pytest
import torch

from families.native import NATIVE
from globalcom2 import compress
from native_cases import LOGITS, PICTURES, PLAIN, case_of, left_clean, picture_grids
from native_oracles import RECURRENT, cut_logits, follows, holed, keep_of

SETTINGS = {
    "a tenth": (0.1, {}),
    "two fifths": (0.4, {"score": "received", "guide": "thumbnail"}),
}
"""Ratio and options. What is kept is read from the report, so that each score and guide comes with the same check."""


@pytest.fixture(params=NATIVE)
def case(request):
    with left_clean(case_of(request.param)) as case:
        yield case


@pytest.mark.parametrize("setting", SETTINGS)
def test_equal_to_both_oracles(case, setting):
    """Budgets, the caller's ids in front, eight greedy tokens and their logits."""
    model, batch = case.model, case.batch
    ratio, options = SETTINGS[setting]
    options = dict(options)
    closed = case.name in PLAIN and setting == "a tenth"
    if case.name in PLAIN and not closed:
        options["positions"] = "original"
    mark = getattr(model.base_model, "rope_deltas", None)
    with compress(model, ratio, **options) as compression:
        out = model.generate(**batch, **LOGITS)
        report = list(compression.report)
        with torch.no_grad():
            direct = model(**case.rows[1]).logits[:, -1]
    assert getattr(model.base_model, "rope_deltas", None) is mark
    assert [image.row for image in report] == [0, 1, 1, 3]
    assert [image.layout.size for image in report] == picture_grids(PICTURES)
    for image, (height, width) in zip(report, picture_grids(PICTURES), strict=True):
        assert image.tokens_after == max(1, int(ratio * height * width + 0.5))
    assert torch.equal(out.sequences[:, : case.length], batch["input_ids"])
    answers, logits = out.sequences[:, case.length :], torch.stack(out.logits, 1)
    torch.testing.assert_close(direct, logits[1:2, 0], atol=case.tolerance, rtol=0)
    keep = keep_of(model, batch, report)
    with torch.no_grad():
        for row, one in enumerate(case.rows):
            expected = cut_logits(model, one, case.real(keep, row), answers[row], closed)
            torch.testing.assert_close(logits[row], expected, atol=case.tolerance, rtol=0)
            assert follows(expected, answers[row], case.suppressed)
    if case.name not in RECURRENT:
        stock = model.generate(**holed(model, batch, keep, closed), **LOGITS)
        assert torch.equal(stock.sequences, out.sequences)
        torch.testing.assert_close(torch.stack(stock.logits, 1), logits, atol=case.tolerance, rtol=0)


def test_ratio_one_is_the_unpatched_model_bit_for_bit(case):
    model, batch = case.model, case.batch
    options = {**LOGITS, "max_new_tokens": 2}
    plain = model.generate(**batch, **options)
    with compress(model, 1.0) as compression:
        ours = model.generate(**batch, **options)
    assert torch.equal(plain.sequences, ours.sequences)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, ours.logits, strict=True))
    assert [image.tokens_before for image in compression.report] == [h * w for h, w in picture_grids(PICTURES)]
    assert compression.report.tokens_before == compression.report.tokens_after
