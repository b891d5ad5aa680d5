"""Fixtures of the whole suite: tiny models, and no network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import transformers

from tiny import Tiny, footprint, llava_next, picture

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llava() -> Tiny:
    """One LLaVA-NeXT for all tests; tests must leave it unpatched."""
    made = llava_next()
    # transformers itself adds hooks and attributes on a model's first call.
    made.model.generate(**made.inputs(["<image>"], [picture(84, 84)]), max_new_tokens=2)
    return made


@pytest.fixture
def tiny(llava: Tiny):
    """The shared model, checked to be clean afterwards."""
    before = footprint(llava.model)
    yield llava
    assert footprint(llava.model) == before, "the model was left patched"


@pytest.fixture
def batch(llava: Tiny):
    """Left-padded prompts: two images of different sizes, one image, none, a picture smaller than a view."""
    texts = ["a <image> b <image> c", "look: <image>?", "no picture here", "<image> tiny"]
    return llava.inputs(texts, [picture(168, 168, 1), picture(60, 200, 2), picture(400, 100, 3), picture(30, 30, 4)])
