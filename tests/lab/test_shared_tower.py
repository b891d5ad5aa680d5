"""A tower that remembers its last call: nothing that is read of it may change."""

import pytest
import torch
from torch import nn

from globalcom2 import compress, load_mini
from globalcom2.lab import shared_tower as module
from globalcom2.lab.chat import chat_prompt
from globalcom2.lab.images import open_image
from globalcom2.lab.shared_tower import SharedTower, shared_tower
from globalcom2.mini import DEMO_PICTURE


@pytest.fixture(scope="module")
def mini():
    return load_mini()


@pytest.fixture(scope="module")
def inputs(mini):
    text = chat_prompt(mini[1], "what number is on the red circle?")
    return mini[1](text=text, images=open_image(DEMO_PICTURE), return_tensors="pt")


def logits_of(model, inputs, **settings):
    with torch.inference_mode(), compress(model, 0.1, **settings) as compression:
        return model(**inputs).logits, [entry.kept for entry in compression.report]


def runs_of(model):
    """How often each layer of the tower has run."""
    layers = model.model.vision_tower.encoder.layers
    counts = [0] * len(layers)
    for number, layer in enumerate(layers):

        def count(*args, number=number):
            counts[number] += 1

        layer.mlp.register_forward_hook(count)
    return counts


def test_settings_share_what_they_have_in_common(mini, inputs):
    model = mini[0]
    settings = [{}, {"layer": -1}, {"method": "random"}, {"score": "similarity"}, {"method": "hired"}]
    apart = [logits_of(model, inputs, **own) for own in settings]
    other = {**inputs, "pixel_values": inputs["pixel_values"] + 0.01}
    apart_other = logits_of(model, other)
    counts = runs_of(model)
    try:
        with shared_tower(model) as shared:
            for own, (logits, kept) in zip(settings, apart, strict=True):
                found, found_kept = logits_of(model, inputs, **own)
                assert torch.equal(found, logits), own
                assert all(map(torch.equal, found_kept, kept)), own
            # The first setting ran all; the others each ran only layers that they read.
            assert sum(counts) < len(counts) + 2 * len(settings)
            assert shared.saved > 0
            before = list(counts)
            found, _ = logits_of(model, other)
            assert torch.equal(found, apart_other[0])
            assert counts == [count + 1 for count in before]  # another picture: all layers ran
    finally:
        for layer in model.model.vision_tower.encoder.layers:
            layer.mlp._forward_hooks.clear()
    assert not any("forward" in layer.__dict__ for layer in model.model.vision_tower.encoder.layers)


def test_what_is_changed_in_place_is_not_what_was_remembered():
    class InPlace(nn.Module):
        def forward(self, states, scale=1.0):
            return (states.add_(1).mul(scale),)

    layer, shared = InPlace(), SharedTower()
    first = shared.run(layer, layer.forward, torch.zeros(3))
    first[0].zero_()
    again = shared.run(layer, layer.forward, torch.zeros(3))
    assert torch.equal(again[0], torch.ones(3))
    assert shared.saved > 0
    assert torch.equal(shared.run(layer, layer.forward, torch.zeros(3), scale=2.0)[0], torch.full((3,), 2.0))
    assert torch.equal(shared.run(layer, layer.forward, torch.ones(3), scale=2.0)[0], torch.full((3,), 4.0))


def test_memory_is_limited(monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 4 * 2 * 10)
    shared, layers, calls = SharedTower(), [nn.Identity(), nn.Identity()], []

    def forward(states):
        calls.append(states)
        return states + 1

    for _ in range(2):
        for layer in layers:
            shared.run(layer, forward, torch.zeros(10))
    assert len(calls) == 3  # the first layer's call is remembered, the second's has no place
