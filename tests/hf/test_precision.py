"""Mixed precision as accelerate and users put it around `forward`: the vision tower runs as it does uncompressed."""

import copy

import pytest
import torch

from globalcom2 import compress
from tiny import picture


def dtypes(model, inputs, ratio=None):
    """Number formats that leave a layer of the tower, the projector and the language model in a direct call."""
    found = {}
    places = {
        "tower": model.model.vision_tower.encoder.layers[1].mlp.fc1,
        "projector": model.model.multi_modal_projector.linear_1,
        "language": model.model.language_model.layers[0].mlp.up_proj,
    }
    hooks = [
        module.register_forward_hook(lambda m, a, out, name=name: found.setdefault(name, out.dtype) and None)
        for name, module in places.items()
    ]
    try:
        model(**inputs) if ratio is None else within(model, inputs, ratio)
    finally:
        [hook.remove() for hook in hooks]
    return found


def within(model, inputs, ratio):
    with compress(model, ratio):
        model(**inputs)


def autocast(model):
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    return model


def prepared(model):
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    return accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare(model)


@pytest.mark.parametrize("around", [autocast, prepared])
@pytest.mark.parametrize("order", ["before the block", "inside the block"])
def test_the_tower_runs_in_the_precision_of_the_call(llava, around, order):
    inputs = llava.inputs(["a <image> b"], [picture(168, 84)])
    plain = dtypes(around(copy.deepcopy(llava.model)), inputs)
    assert set(plain.values()) == {torch.bfloat16}
    model = copy.deepcopy(llava.model)
    if order == "before the block":
        assert dtypes(around(model), inputs, 0.25) == plain
        assert dtypes(model, inputs, 0.25) == plain  # and again
    else:
        with compress(model, 0.25) as compression:
            around(model)
            assert dtypes(model, inputs) == plain
            assert len(compression.report) == 1
        with compress(model, 0.25) as compression:  # what was put around stays, and so does the precision
            assert dtypes(model, inputs) == plain
            assert len(compression.report) == 1
    assert dtypes(model, inputs) == plain


def test_without_mixed_precision_nothing_is_cast(llava):
    inputs = llava.inputs(["a <image> b"], [picture(168, 84)])
    assert set(dtypes(llava.model, inputs, 0.25).values()) == {torch.float32}


def test_an_unwrapped_model_is_compressed_still(llava):
    accelerate = pytest.importorskip("accelerate")
    inputs = llava.inputs(["a <image> b"], [picture(168, 84)])
    model = copy.deepcopy(llava.model)
    with compress(model, 0.25) as compression, torch.no_grad():
        short = model(**inputs).logits.shape[1]
        prepared(model)
        plain = accelerate.utils.extract_model_from_parallel(model, keep_fp32_wrapper=False)
        assert plain(**inputs).logits.shape[1] == short
        assert len(compression.report) == 1
