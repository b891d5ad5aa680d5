"""The family is found, and a compressed call is that of LLaVA-NeXT with scores of the last layer."""

import torch
from lanterna import LanternaForConditionalGeneration

from globalcom2 import compress, list_models, load_mini
from globalcom2.mini import FOLDER, demo_picture


def test_the_family_is_found():
    """Its entry point works."""
    assert "lanterna" in list_models()


def test_it_keeps_what_the_last_layer_says():
    """The same weights, asked under both names."""
    known, processor = load_mini()
    own = LanternaForConditionalGeneration.from_pretrained(FOLDER)
    text = "<user><image>What number is on the orange triangle?<assistant>"
    inputs = processor(text=text, images=demo_picture(), return_tensors="pt")
    with compress(own, 0.1) as compression:
        answer = own.generate(**inputs, max_new_tokens=4)
    with compress(known, 0.1, layer=-1) as expected:
        wanted = known.generate(**inputs, max_new_tokens=4)
    assert torch.equal(compression.report[0].keep.crops, expected.report[0].keep.crops)
    assert torch.equal(answer, wanted)
