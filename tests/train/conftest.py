"""Tests with the real trainers: `make test-train`. Skipped where trl is not installed, tests of PEFT alone excepted."""

import importlib.util

import pytest

HAS_TRL = importlib.util.find_spec("trl") is not None
collect_ignore = (
    []
    if HAS_TRL
    else ["test_train_policy.py", "test_train_supervised.py", "test_train_packed.py", "test_train_docs.py"]
)
if not HAS_TRL or importlib.util.find_spec("peft") is None:
    collect_ignore.append("test_train_peft.py")

TRIED = ["llava_next", "llava_onevision", "internvl", "idefics3"]


@pytest.fixture(scope="session")
def made():
    """Tiny models by family, each made once, called once and given a chat template."""
    import recipes

    models = {}

    def of(name):
        if name not in models:
            models[name] = recipes.chatty(name)
        return models[name]

    return of


@pytest.fixture(params=TRIED)
def family(request, made):
    """A tiny model of every family that is tried; tests copy its model before they train it."""
    return made(request.param)


@pytest.fixture
def llava_chat(made):
    """LLaVA-NeXT alone, for what does not depend on the family."""
    return made("llava_next")
