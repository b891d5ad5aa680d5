"""An image that is encoded again keeps the same places, whatever else is in the batch, in single and in half precision."""

import contextlib

import engines
import pytest
import torch

from globalcom2.integrations.vllm import model as plugin
from globalcom2.lab.dataset import load_examples
from globalcom2.mini import EVALUATION_SET, FOLDER

QUESTION = "<s><user><image>what?<assistant>"
ROUNDS = ((0,), (0, 1, 2, 3, 4, 5), (3, 0), (5, 4, 3, 2, 1, 0))
"""Which images are asked about at once."""


@pytest.fixture(scope="module")
def images():
    return [own.image for own in load_examples(EVALUATION_SET, first=6)]


@contextlib.contextmanager
def kept_in(engine, monkeypatch, noise, memory=True):
    """A function that has an engine encode images; it gives the places that each kept, by the digest of its pixels.

    `noise` stands in for kernels that sum in another order with each batch, as a GPU's do.
    """
    (model,) = engine.apply_model(lambda own: own)
    generator = torch.Generator().manual_seed(0)
    exact, settled = type(model).scores, plugin.Memory.settled

    def noisy(self, made):
        scores = exact(self, made)
        return scores * (1 + noise * torch.randn(scores.shape, generator=generator))

    found = {}

    def noted(self, image, kept):
        own = settled(self, image, kept) if memory else kept
        found.setdefault(image, []).append(own.tolist())
        return own

    def encode(images):
        found.clear()
        engine.reset_prefix_cache()
        engine.llm_engine.reset_encoder_cache()
        engines.answers(engine, [engines.request(QUESTION, [image]) for image in images], 1)
        assert len(found) == len(images)
        return {image: own[0] for image, own in found.items()}

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "scores", noisy)
        patch.setattr(plugin.Memory, "settled", noted)
        yield encode


def changes(encode, images) -> int:
    """How many encodings kept other places than the first one of the same image."""
    first, changed = {}, 0
    for numbers in ROUNDS:
        for image, kept in encode([images[i] for i in numbers]).items():
            changed += first.setdefault(image, kept) != kept
    assert len(first) == len(images)
    return changed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_image_that_is_encoded_again_keeps_the_same_places(dtype, images, monkeypatch):
    settings = {"dtype": dtype, "max_num_batched_tokens": 8192}
    with engines.running(FOLDER, settings, globalcom2_retention=0.25) as engine:
        with kept_in(engine, monkeypatch, 0.0, memory=False) as encode:
            assert changes(encode, images) == 0  # the same kernels, one picture more or less
        if dtype == "float32":
            with kept_in(engine, monkeypatch, 2**-22, memory=False) as encode:
                assert changes(encode, images) == 0  # rounding alone sees to it
        with kept_in(engine, monkeypatch, 2**-8, memory=False) as encode:
            assert changes(encode, images) > 0  # no rounding can
        with kept_in(engine, monkeypatch, 2**-8) as encode:
            assert changes(encode, images) == 0
            (model,) = engine.apply_model(lambda own: own)
            model.memory.clear()
            assert changes(encode, images) == 0
