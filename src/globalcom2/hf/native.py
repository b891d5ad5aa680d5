"""Families whose images keep their resolution: which settings they take, and positions by time, row and column."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from globalcom2.adapters.base import Adapter
from globalcom2.errors import InputError, UnsupportedModelError
from globalcom2.hf.config import CompressionConfig
from globalcom2.hf.shortening import Given


def check_settings(adapter: Adapter, settings: CompressionConfig, kind: str) -> None:
    """Raise for settings that mean nothing in a family, or nothing anybody has published.

    Args:
        adapter: Of the family's images.
        settings: What `compress` was asked for.
        kind: The model type, for messages.

    Raises:
        InputError: A setting that needs a thumbnail.
        UnsupportedModelError: A setting that the family cannot follow.
    """
    if adapter.three_dimensional and settings.positions == "closed":
        raise UnsupportedModelError(
            f"positions must be 'original' for {kind}, got 'closed': it numbers visual tokens by row and column, which closed "
            "gaps would tear apart. Leave positions out."
        )
    if adapter.closed_alone and settings.positions == "original":
        raise UnsupportedModelError(
            f"positions must be 'closed' for {kind}, got 'original': {adapter.closed_alone}. Leave positions out."
        )
    if not adapter.native:
        return
    if settings.exact is False or settings.thumbnail_order == "score":
        got = "exact=False" if settings.exact is False else "thumbnail_order='score'"
        raise InputError(
            f"exact and thumbnail_order must be left out for {kind}, got {got}: these are of the published code, which knows "
            "no images without a thumbnail."
        )
    if settings.thumbnail_weight != 1.0:
        raise InputError(
            f"thumbnail_weight must be left out for {kind}, got {settings.thumbnail_weight:g}: its images have no thumbnail to "
            "keep."
        )
    if settings.inside is not None:
        raise UnsupportedModelError(
            f"inside must be left out for {kind}, got {settings.inside!r}: nobody has compared it there with tokens removed by "
            "hand."
        )


def with_axes(given: Given, model: Any, call: dict[str, Any], adapter: Adapter) -> Given:
    """A prompt with the positions that the model gives to the full one, (axes, batch, length).

    Raises:
        InputError: Positions of the caller's own, images that follow cached tokens in a direct call, or what
            `Adapter.positions` refuses.
    """
    if call.get("position_ids") is not None:
        raise InputError(
            f"position_ids must be left out in a compressed call of {model.config.model_type}, got a tensor: tokens keep the "
            "positions that the model gives to the full prompt."
        )
    if given.unknown:
        raise InputError(
            f"past_key_values must be left out of a direct call with images or videos, got {given.cached} cached tokens: "
            "positions follow from their ids, which such a call does not tell. Pass the whole prompt, or call generate."
        )
    known = {**call, "input_ids": given.ids, "attention_mask": given.mask}
    return replace(given, positions=adapter.positions(model.base_model, known))
