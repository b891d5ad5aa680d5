"""The registry of model families: model types to lazily imported adapters. Knows no torch, so listing is instant."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from globalcom2.errors import UnsupportedModelError

if TYPE_CHECKING:
    from globalcom2.adapters import Adapter


@dataclass(frozen=True)
class Family:
    """One model family: `target` is "module:Adapter"; the texts are for the models table."""

    model_type: str
    target: str
    scores: str
    thumbnail: str
    tested: str


_FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            "llava_next",
            "globalcom2.adapters.llava_next:LlavaNextAdapter",
            "[CLS] row of the last layer of the CLIP tower",
            "first",
            "random weights and the trained mini model; not with published checkpoints",
        ),
    )
}


def list_models() -> list[str]:
    """Model types (`model.config.model_type`) that `compress` accepts."""
    return sorted(_FAMILIES)


def get_family(model_type: str) -> Family:
    """The family of that model type; an unknown one raises `UnsupportedModelError` with the list of supported ones."""
    if model_type not in _FAMILIES:
        raise UnsupportedModelError(
            f"model must be of a supported family ({', '.join(list_models())}), got model_type {model_type!r}. "
            "See the models table for what is planned."
        )
    return _FAMILIES[model_type]


def load_adapter(model_type: str) -> Adapter:
    """An instance of the family's adapter."""
    module, _, name = get_family(model_type).target.partition(":")
    adapter: Adapter = getattr(importlib.import_module(module), name)()
    return adapter
