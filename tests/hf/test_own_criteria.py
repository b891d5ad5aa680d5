"""A caller's own processors and criteria of transformers' types take the place of generate's, as in the stock model."""

import pytest
import torch
from transformers import (
    EosTokenCriteria,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
)

from calls import generate
from globalcom2 import compress
from tiny import picture


def lengths(model, inputs, make, **kwargs):
    """New tokens of the stock model and of the compressed one."""
    found = []
    for ratio in (1.0, 0.25):
        with compress(model, ratio):
            out = generate(model, inputs, **make(inputs), **kwargs)
        assert torch.equal(out[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
        found.append(out.shape[1] - inputs["input_ids"].shape[1])
    return found


@pytest.mark.parametrize("own", [9, 3])
def test_the_longest_length(tiny, own):
    """The stock model stops at the first of several; the caller's counts the caller's prompt."""
    inputs = tiny.inputs(["a <image> b"], [picture(168, 168)])

    def make(inputs):
        most = inputs["input_ids"].shape[1] + own
        return {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(max_length=most)])}

    assert lengths(tiny.model, inputs, make, max_new_tokens=6) == [own, own]


def test_the_end_token(tiny):
    """generate's own end token would stop at once; the caller's never comes."""
    inputs = tiny.inputs(["a <image> b"], [picture(168, 168)])
    own = EosTokenCriteria(eos_token_id=1)

    def make(inputs):
        return {"stopping_criteria": StoppingCriteriaList([own])}

    for ratio in (1.0, 0.25):
        with compress(tiny.model, ratio):
            first = int(generate(tiny.model, inputs)[0, inputs["input_ids"].shape[1]])
            assert generate(tiny.model, inputs, eos_token_id=first).shape[1] == inputs["input_ids"].shape[1] + 1
            out = generate(tiny.model, inputs, eos_token_id=first, **make(inputs))
        assert out.shape[1] == inputs["input_ids"].shape[1] + 6


def test_a_processor_takes_precedence_and_sees_the_callers_prompt(tiny):
    inputs, seen = tiny.inputs(["a <image> b"], [picture(168, 168)]), []

    class Penalty(RepetitionPenaltyLogitsProcessor):
        pass

    own = RepetitionPenaltyLogitsProcessor(penalty=1.0)
    with compress(tiny.model, 0.25):
        plain = generate(tiny.model, inputs)
        penalised = generate(tiny.model, inputs, repetition_penalty=8.0)
        mine = generate(tiny.model, inputs, repetition_penalty=8.0, logits_processor=LogitsProcessorList([own]))
        both = generate(
            tiny.model, inputs, repetition_penalty=8.0, logits_processor=LogitsProcessorList([Penalty(penalty=1.0)])
        )
    assert not torch.equal(plain, penalised)
    assert torch.equal(mine, plain)
    assert torch.equal(both, penalised)  # of another type: both apply, as in the stock model

    class Spy(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(input_ids)
            return scores

    with compress(tiny.model, 0.25):
        generate(tiny.model, inputs, num_beams=2, logits_processor=LogitsProcessorList([Spy()]))
    assert all(torch.equal(row, inputs["input_ids"][0]) for x in seen for row in x[:, : inputs["input_ids"].shape[1]])
