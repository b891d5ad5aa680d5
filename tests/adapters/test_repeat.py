"""`Adapter.repeat`: features of beams, in the container that each family's forward reads."""

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.granite4_vision.modeling_granite4_vision import Granite4VisionImageFeaturesOutput

from globalcom2.adapters.families import load_adapter

COUNTS = [3, 0, 2]  # features of three prompts, the second of which has no image
BEAMS = [0, 1, 2, 0, 1, 2, 3, 4, 3, 4]  # numbers of the features when every prompt stands twice


def numbered(shift=0):
    return torch.arange(5.0)[:, None] + torch.tensor([0.0, 0.25]) + shift


def test_features_in_a_list():
    given = BaseModelOutputWithPooling(pooler_output=list(numbered().split([1, 2, 2])))
    given.note = "stays"
    repeated = load_adapter("llava_next").repeat(given, COUNTS, 2)
    assert len(repeated.pooler_output) == 1
    assert torch.equal(repeated.pooler_output[0], numbered()[BEAMS])
    assert repeated.note == "stays"
    assert len(given.pooler_output) == 3, "the caller's own output is not touched"


def test_features_in_one_tensor():
    given = BaseModelOutputWithPooling(pooler_output=numbered()[None])
    repeated = load_adapter("internvl").repeat(given, COUNTS, 2)
    assert torch.equal(repeated.pooler_output, numbered()[None, BEAMS])


def test_llama4_reads_the_last_hidden_state():
    given = BaseModelOutputWithPooling(last_hidden_state=numbered()[None], pooler_output=numbered(9)[None])
    repeated = load_adapter("llama4").repeat(given, COUNTS, 2)
    assert torch.equal(repeated.last_hidden_state, numbered()[None, BEAMS])


def test_granite4_repeats_every_level():
    levels = [(layer, [numbered(layer)[:4], numbered(layer)[4:]]) for layer in (1, 7)]
    given = Granite4VisionImageFeaturesOutput(deepstack_features=levels)
    repeated = load_adapter("granite4_vision").repeat(given, COUNTS, 2)
    assert [layer for layer, _ in repeated.deepstack_features] == [1, 7]
    for layer, features in repeated.deepstack_features:
        assert len(features) == 1
        assert torch.equal(features[0], numbered(layer)[BEAMS])
    assert [len(features) for _, features in given.deepstack_features] == [2, 2]


@pytest.mark.parametrize("times", [1, 3])
def test_prompts_stay_together(times):
    given = BaseModelOutputWithPooling(pooler_output=[numbered()])
    (features,) = load_adapter("idefics3").repeat(given, COUNTS, times).pooler_output
    wanted = [n for prompt in ([0, 1, 2], [3, 4]) for _ in range(times) for n in prompt]
    assert features[:, 0].tolist() == wanted
