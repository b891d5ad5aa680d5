"""What of a `CompressionConfig` a serving engine can follow. Knows no engine."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from globalcom2.core.method import Method
from globalcom2.core.scores import SCORE_TYPES
from globalcom2.core.selection import select
from globalcom2.core.views import Views
from globalcom2.errors import GlobalCom2Error, InputError

SERVED = ("newlines", "thumbnail_weight", "max_visual_tokens", "score")
"""Fields besides ratio, method and options that an engine follows; all others it leaves at their defaults."""
FREE = ("retention_ratio", "method", "options", *SERVED)
"""Fields that may have any value that a configuration may have."""
ANYWAY = {"positions": "closed"}
"""Values that are not the defaults and say what an engine does anyway."""
GIVEN = ("features", "crop_features")
"""What of `core.method.READS` an engine gives a method besides scores."""


def check_served(config: Any, scores: tuple[str, ...] = SCORE_TYPES) -> None:
    """Raise unless an engine can follow the settings.

    Args:
        config: A `CompressionConfig`, whose module imports this one.
        scores: Score types that the engine reads in its model, the one first that it reads where nothing names one. All
            of them where the model is not known yet.

    Raises:
        InputError: A field, a method or an option of it that an engine cannot follow, by name and with the reason.
    """
    _check_fields(config)
    method = config.selector
    why = _out_of_reach(method)
    if why:
        raise InputError(
            f"method must be one that an engine can follow, got {method.name!r}, which {why}. Use transformers for it."
        )
    score = score_served(config, scores)
    # Where the model is not known, neither is its score type, and a method need not take all of them.
    known = scores is not SCORE_TYPES or config.score is not None or method.score is not None
    errors = [_error(config, one) for one in ([score] if known else scores)]
    if all(errors):
        raise errors[0]  # type: ignore[misc]


def score_served(config: Any, scores: tuple[str, ...]) -> str:
    """The score type that an engine reads with these settings, see `check_served`.

    Raises:
        InputError: It does not read the one that is asked for.
    """
    method = config.selector
    score = config.score or method.score or scores[0]
    if score not in scores:
        got = f"{score!r}" if config.score else f"{score!r}, on which method {method.name!r} is defined"
        raise InputError(
            f"score must be one of {', '.join(scores)} in an engine of this model, got {got}. Leave it to the model with "
            f"{method.name}:score={scores[0]}, or use transformers."
        )
    return score


def _check_fields(config: Any) -> None:
    if isinstance(config.retention_ratio, str):
        raise InputError(
            f"retention_ratio must be a number in (0, 1] for an engine, got {config.retention_ratio!r}: an engine must know "
            "how many tokens an image keeps before it has looked at it."
        )
    told = {own.name: getattr(config, own.name) for own in fields(config) if own.name not in FREE}
    defaults = {own.name: own.default for own in fields(config)}
    unusual = {name: value for name, value in told.items() if value not in (defaults[name], ANYWAY.get(name))}
    if unusual:
        got = ", ".join(f"{name}={value!r}" for name, value in unusual.items())
        raise InputError(
            f"{' and '.join(unusual)} must be left out for a vLLM engine, got {got}. It follows a ratio, a method and its "
            f"options, {', '.join(SERVED[:-1])} and {SERVED[-1]}; use transformers for the rest."
        )


def _out_of_reach(method: Method) -> str:
    """What an engine cannot give the method or do for it; empty for nothing."""
    reads = {"keys": "reads attention keys", "cls": "reads the feature of [CLS]"}
    wants = [reads.get(name, f"reads {name}") for name in sorted(method.wanted.difference(GIVEN))]
    if method.layers:
        wants.append("reads scores of further layers of the vision tower")
    if method.merges:
        wants.append("merges tokens that it drops into those that it keeps")
    return " and ".join(wants)


def _error(config: Any, score: str) -> GlobalCom2Error | None:
    """What `select` raises for views of that score type, told now and not by a server's first request."""
    try:
        select(
            example(config.selector, score),
            config.highest_ratio,
            config.method,
            newlines=config.newlines,
            thumbnail_weight=config.thumbnail_weight,
            check=False,
            **config.options,
        )
    except GlobalCom2Error as error:
        return error
    return None


def example(method: Method, score: str) -> Views:
    """Views of a thumbnail and four crops of four tokens, all zero, with what an engine gives the method."""
    zeros = torch.zeros(5, 4, 1)
    return Views(
        zeros[1:, :, 0],
        grid=(2, 2),
        features=zeros if "features" in method.wanted else None,
        thumbnail_scores=zeros[0, :, 0],
        lines=torch.tensor([[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2),
        score_type=score,
        crop_features=zeros[1:] if "crop_features" in method.wanted else None,
    )
