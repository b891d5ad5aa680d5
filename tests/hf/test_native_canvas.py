"""MiniCPM-V 4.7, which cuts images and numbers tokens by their places in them: two oracles, all tokens, beams, refusals."""

from functools import cache

import pytest
import torch

from families.canvas import minicpmv4_7
from globalcom2 import InputError, UnsupportedModelError, compress
from native_more_cases import LOGITS, cut_logits
from native_oracles import follows, keep_of
from tiny import footprint, picture

PICTURES = [picture(220, 230, 1), picture(100, 60, 2), picture(300, 110, 3)]
"""A thumbnail and 2 x 2 crops, a thumbnail alone, a thumbnail and 1 x 3 crops."""


@cache
def made():
    tiny = minicpmv4_7()
    texts = [f"what {tiny.tag} is", f"{tiny.tag} or {tiny.tag}?", "no picture here"]
    rows = [tiny.inputs([text], own) for text, own in zip(texts, (PICTURES[:1], PICTURES[1:], []), strict=True)]
    tiny.model.generate(**rows[1], max_new_tokens=2)  # transformers itself adds hooks on a model's first call
    return tiny, dict(tiny.inputs(texts, PICTURES)), [dict(row) for row in rows]


@pytest.fixture
def case():
    before = footprint(made()[0].model)
    yield made()
    assert footprint(made()[0].model) == before


@pytest.mark.parametrize("ratio", [0.1, 0.4])
def test_equal_to_both_oracles(case, ratio):
    tiny, batch, rows = case
    model = tiny.model
    with torch.no_grad(), compress(model, ratio) as compression:
        out = model.generate(**batch, **LOGITS)
        report = list(compression.report)
        direct = model(**batch).logits[:, -1]
    assert [image.tokens_before for image in report] == [80, 15, 60]
    assert [image.tokens_after for image in report] == [int(n * ratio + 0.5) for n in (80, 15, 60)]
    answers, logits = out.sequences[:, batch["input_ids"].shape[1] :], torch.stack(out.logits, 1)
    same = {"atol": 5e-5, "rtol": 0}
    torch.testing.assert_close(direct, logits[:, 0], **same)
    keep = keep_of(model, batch, report)
    with torch.no_grad():
        for row, one in enumerate(rows):
            real = keep[row][batch["attention_mask"][row].bool()]
            expected = cut_logits(model, one, real, answers[row], closed=False)
            torch.testing.assert_close(logits[row], expected, **same)
            assert follows(expected, answers[row], model.generation_config.suppress_tokens)
        torch.testing.assert_close(logits, holed_logits(model, batch, keep, answers), **same)


def holed_logits(model, batch, keep, answers):
    """Logits (batch, tokens, vocabulary) of full prompts with their answers and holes in the mask, in one pass."""
    more = answers[:, :-1]
    ids, types, full, mask = (
        torch.cat([own, fill], 1)
        for own, fill in (
            (batch["input_ids"], more),
            (batch["mm_token_type_ids"], torch.zeros_like(more)),
            (batch["attention_mask"], torch.ones_like(more)),
            (keep.long() * batch["attention_mask"], torch.ones_like(more)),
        )
    )
    known = {"mm_token_type_ids": types, "target_sizes": batch["target_sizes"]}
    places = model.base_model.get_rope_index(ids, attention_mask=full, **known)[0]
    call = {**batch, **known, "input_ids": ids, "attention_mask": mask, "position_ids": places}
    return model(**call, use_cache=False).logits[:, -answers.shape[1] :]


def test_all_tokens_and_beams(case):
    tiny, batch, rows = case
    model, beams = tiny.model, {"max_new_tokens": 3, "num_beams": 2, "do_sample": False}
    with torch.no_grad():
        stock = model(**batch).logits
        with compress(model, 1.0):
            assert torch.equal(model(**batch).logits, stock)
    with compress(model, 0.2):
        together = model.generate(**batch, **beams)[:, -3:]
        alone = [model.generate(**one, **beams)[0, -3:] for one in rows]
    assert torch.equal(together, torch.stack(alone))


def test_positions_that_cannot_be_known(case):
    tiny, batch, _ = case
    with compress(tiny.model, 0.2):
        with pytest.raises(InputError, match="mm_token_type_ids must be given"):
            tiny.model(**{name: value for name, value in batch.items() if name != "mm_token_type_ids"})
        with pytest.raises(InputError, match="position_ids must be left out"):
            tiny.model(**batch, position_ids=torch.zeros_like(batch["input_ids"]))
    with (
        pytest.raises(UnsupportedModelError, match="positions must be 'original'"),
        compress(tiny.model, 0.2, positions="closed"),
    ):
        pass
