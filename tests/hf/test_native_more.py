"""More families whose images keep their resolution, against two ways to the same answers from unpatched models alone."""

import pytest
import torch

from globalcom2 import UnsupportedModelError, compress
from native_more_cases import (
    CLOSED,
    LOGITS,
    MORE,
    ROTARY,
    SIMILARITY,
    STATEFUL,
    case_of,
    cut_logits,
    holed_logits,
    left_clean,
    sizes_of,
)
from native_oracles import follows, keep_of


@pytest.fixture(params=MORE)
def case(request):
    with left_clean(request.param) as case:
        yield case


@pytest.mark.parametrize("setting", ["a tenth", "two fifths"])
def test_equal_to_both_oracles(case, setting):
    """Budgets, greedy tokens and logits. A real guide and scores read in attention with the greater ratio."""
    name, tiny, batch, rows = case
    model, ratio, options = tiny.model, 0.1, {}
    if setting == "two fifths":
        ratio, options = 0.4, {"guide": "thumbnail", "score": "similarity" if name in SIMILARITY else "received"}
    closed = name in CLOSED or (name not in ROTARY and setting == "a tenth")
    if not closed:
        options["positions"] = "original"
    with torch.no_grad(), compress(model, ratio, **options) as compression:
        out = model.generate(**batch, **LOGITS)
        report = list(compression.report)
        direct = model(**rows[1]).logits[:, -1]
    sizes = sizes_of(name, batch)
    assert [image.layout.size for image in report] == sizes
    assert [image.tokens_after for image in report] == [max(1, int(ratio * h * w + 0.5)) for h, w in sizes]
    length = batch["input_ids"].shape[1]
    assert torch.equal(out.sequences[:, :length], batch["input_ids"])
    answers, logits = out.sequences[:, length:], torch.stack(out.logits, 1)
    same = {"atol": 5e-4 if name in STATEFUL else 5e-5, "rtol": 0}
    torch.testing.assert_close(direct, logits[1:2, 0], **same)
    keep, barred = keep_of(model, batch, report), model.generation_config.suppress_tokens
    with torch.no_grad():
        for row, one in enumerate(rows):
            real = keep[row][batch["attention_mask"][row].bool()]
            expected = cut_logits(model, one, real, answers[row], closed)
            torch.testing.assert_close(logits[row], expected, **same)
            assert follows(expected, answers[row], barred)
        if name not in (*STATEFUL, "minimax_m3_vl"):
            expected = holed_logits(model, batch, keep, answers, name, closed)
            torch.testing.assert_close(logits, expected, **same)


def test_all_tokens_and_beams(case):
    """Ratio 1 is the unpatched model bit for bit; beams of a prompt with two images are those of it alone."""
    _, tiny, batch, rows = case
    model, beams = tiny.model, {"max_new_tokens": 2, "num_beams": 2, "do_sample": False}
    with torch.no_grad():
        stock = model(**rows[1]).logits
        with compress(model, 1.0):
            assert torch.equal(model(**rows[1]).logits, stock)
    with compress(model, 0.2):
        together = model.generate(**batch, **beams)[:, -2:]
        alone = model.generate(**rows[1], **beams)[:, -2:]
    assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize("name", CLOSED)
def test_original_positions_are_refused_where_the_model_would_not_follow_them(name):
    with pytest.raises(UnsupportedModelError, match="positions must be 'closed'"):
        compress(case_of(name)[0].model, 0.2, positions="original")
