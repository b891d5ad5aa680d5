"""Seconds of the vision tower and of image features in calls of an unpatched model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch

from globalcom2.hf.report import Clock


def tower_of(base: Any) -> torch.nn.Module:
    """The vision tower of a model that has `get_image_features`."""
    tower: torch.nn.Module = base.visual if hasattr(base, "visual") else base.vision_tower
    return tower


@contextmanager
def plain_phases(model: Any) -> Iterator[Clock]:
    """Time the vision tower ("tower") and all that makes image features ("features") in calls of an unpatched model.

    Mergers that are part of a tower are timed with it.

    Args:
        model: The model; it is as before after the block.

    Yields:
        A clock, to be read after the call. The host does not wait for it.
    """
    base, clock, running = model.base_model, Clock(model.device), ExitStack()
    features = base.get_image_features

    @wraps(features)  # transformers reads the signature
    def timed(*args: Any, **kwargs: Any) -> Any:
        with clock.phase("features"):
            return features(*args, **kwargs)

    def start(*_: Any) -> None:
        running.enter_context(clock.phase("tower"))

    def stop(*_: Any) -> None:
        running.close()

    tower = tower_of(base)
    hooks = [tower.register_forward_pre_hook(start), tower.register_forward_hook(stop)]
    base.get_image_features = timed
    try:
        yield clock
    finally:
        running.close()
        del base.get_image_features
        for hook in hooks:
            hook.remove()
