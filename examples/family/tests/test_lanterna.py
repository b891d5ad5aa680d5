"""The family is found, and it keeps what scores of the last layer say."""

import torch
from lanterna import LanternaConfig, LanternaForConditionalGeneration

from globalcom2 import compress, list_models, load_mini
from globalcom2.mini import demo_picture


def test_the_family_is_found():
    """Its entry point works."""
    assert "lanterna" in list_models()


def test_it_keeps_what_the_last_layer_says():
    """The same weights, asked under both names."""
    known, processor = load_mini()
    settings = known.config.to_dict()
    del settings["model_type"]
    own = LanternaForConditionalGeneration(LanternaConfig.from_dict(settings)).eval()
    own.load_state_dict(known.state_dict())
    own.generation_config = known.generation_config
    text = "<user><image>What number is on the orange triangle?<assistant>"
    inputs = processor(text=text, images=demo_picture(), return_tensors="pt")
    assert own.config.model_type == "lanterna"
    with compress(own, 0.1) as compression:
        answer = own.generate(**inputs, max_new_tokens=4)
    with compress(known, 0.1, layer=-1) as expected:
        wanted = known.generate(**inputs, max_new_tokens=4)
    assert torch.equal(compression.report[0].keep.crops, expected.report[0].keep.crops)
    assert torch.equal(answer, wanted)
