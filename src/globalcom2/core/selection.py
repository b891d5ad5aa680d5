"""`select`: views and a ratio in, a mask of the survivors out."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from globalcom2.core import allocation
from globalcom2.core.budget import Budget, check_ratio, image_budget
from globalcom2.core.methods import check_options, get_method
from globalcom2.core.ranking import Ranking
from globalcom2.core.views import Views
from globalcom2.errors import DataError, InputError

NEWLINES = ("counted", "all", "none")


@dataclass(frozen=True, eq=False)
class Keep:
    """Masks of the survivors; shapes carry the batch axis of the views."""

    thumbnail: Tensor
    """bool (tokens,); (0,) for an image without a thumbnail."""
    crops: Tensor
    """bool (crops, tokens); never a padded token."""
    newlines: Tensor | None = None
    """bool (lines,): newlines that stay; None where the packing has none."""


def budget_of(views: Views, retention_ratio: float, newlines: str = "counted", thumbnail_weight: float = 1.0) -> Budget:
    """The exact budget of one image: from shapes, `valid` and the ratio only."""
    thumbnail = 0 if views.thumbnail_scores is None else views.thumbnail_tokens
    return image_budget(retention_ratio, thumbnail, views.valid_count, views.line_count, newlines, thumbnail_weight)


@torch.no_grad()
def select(
    views: Views,
    retention_ratio: float,
    method: str = "globalcom2",
    exact: bool = True,
    newlines: str | None = None,
    thumbnail_weight: float = 1.0,
    check: bool = True,
    **options: Any,
) -> Keep:
    """Choose the tokens that survive.

    Args:
        views: One image or a batch of images of one shape.
        retention_ratio: Fraction of the tokens to keep, in (0, 1].
        method: A name from `list_methods()`.
        exact: True: totals follow from shapes, `valid` and the ratio alone and are always met, at least one token per
            image. False: the published code's rounding (int() per view, clip at 1, nothing redistributed); with
            default options the kept sets equal those of the paper's code.
        newlines: For packings with newline tokens (`views.lines`). "counted": the budget pays for them and a line
            keeps its newline only if it keeps a token. "none": the same budget, all of it for tokens. "all": every line
            keeps its newline and none is counted, as in the published code. Default: "counted" if `exact`, else "all".
        thumbnail_weight: The thumbnail's ratio over `retention_ratio`, positive; the crops get the rest of the same
            budget. Needs `exact`.
        check: Whether to look for values that are not finite, which makes a host wait for its device. Without it, such
            values keep an arbitrary set; `all_finite` and `require_finite` are the two halves. A call without
            it that has run before can be captured by a CUDA graph, if `valid` and `lines` are in pinned memory.
        **options: Options of the method, see its docstring.

    Returns:
        `Keep` with boolean masks.

    Raises:
        InputError: A ratio, method or option out of range.
        DataError: Scores that are not finite.
    """
    if not isinstance(views, Views):
        raise InputError(
            f"views must be a globalcom2.Views, got {type(views).__name__}. Wrap the scores: Views(scores, ...)."
        )
    ratio = check_ratio(retention_ratio)
    newlines = newlines if newlines is not None else ("counted" if exact else "all")
    if newlines not in NEWLINES:
        raise InputError(f"newlines must be one of {', '.join(NEWLINES)}, got {newlines!r}.")
    check_thumbnail_weight(thumbnail_weight, exact)
    chosen = get_method(method)
    if not exact:
        options = {**chosen.published, **options}
    check_options(chosen, options)
    batched = views.scores.ndim == 3
    views = views if batched else _with_batch_axis(views)
    if check and not bool(all_finite(views)):
        require_finite(views)
    ranking: Ranking = chosen.load()(views, ratio, **options)

    lines = None if views.lines is None else views.lines.to(views.scores.device, non_blocking=True)
    valid = views.valid_mask
    batch = views.scores.shape[0]
    kept_newlines = None
    if not exact:
        thumbnail, crops = allocation.as_published(ranking, ratio, valid)
    elif lines is None or newlines == "all" or views.line_count == 0:
        thumbnail, crops = allocation.exact(ranking, budget_of(views, ratio, "all", thumbnail_weight), valid)
    elif newlines == "none":
        thumbnail, crops = allocation.exact(ranking, budget_of(views, ratio, newlines, thumbnail_weight), valid)
        kept_newlines = torch.zeros(batch, views.line_count, dtype=torch.bool, device=valid.device)
    else:
        budget = budget_of(views, ratio, newlines, thumbnail_weight)
        thumbnail, crops, kept_newlines = allocation.exact_with_newlines(
            ranking, budget, valid, lines, views.line_count
        )
    if lines is not None and kept_newlines is None:
        kept_newlines = torch.ones(batch, views.line_count, dtype=torch.bool, device=valid.device)
        if newlines == "counted" and views.line_count:
            kept_newlines = allocation.occupied_lines(crops, lines, views.line_count)
    if thumbnail is None:
        thumbnail = valid.new_zeros(batch, 0)
    keep = Keep(thumbnail, crops, kept_newlines)
    return keep if batched else Keep(*(None if mask is None else mask[0] for mask in (thumbnail, crops, kept_newlines)))  # type: ignore[arg-type]


def check_thumbnail_weight(weight: float, exact: bool) -> None:
    """Raise `InputError` for a weight out of range, or one that the published rounding cannot follow."""
    if isinstance(weight, bool) or not isinstance(weight, Real) or not 0.0 < weight < float("inf"):
        raise InputError(f"thumbnail_weight must be a positive number, got {weight!r}.")
    if weight != 1.0 and not exact:
        raise InputError(f"thumbnail_weight must be 1 with exact=False, got {weight!r}: every view has its own share.")


def _with_batch_axis(views: Views) -> Views:
    lifted = copy.copy(views)  # checked already
    for name in ("scores", "features", "thumbnail_scores", "guidance"):
        tensor = getattr(views, name)
        object.__setattr__(lifted, name, None if tensor is None else tensor[None])
    return lifted


def all_finite(views: Views) -> Tensor:
    """Whether all values are finite, bool () on their device; a sum that overflows counts as not finite."""
    tensors = [tensor for _, tensor in _values(views)]
    return sum(tensor.double().sum() for tensor in tensors).isfinite()  # type: ignore[union-attr]


def require_finite(views: Views) -> None:
    """Raise `DataError` for values that are not finite, padding aside."""
    for name, tensor in _values(views):
        wrong = ~tensor.isfinite() & (True if name == "thumbnail_scores" else views.valid_mask)
        if wrong.any():
            raise DataError(
                f"{name} must be finite, got {int(wrong.sum())} NaN or infinite values. "
                "Check the vision tower's output; half precision overflows in some towers, try bfloat16 or float32."
            )


def _values(views: Views) -> list[tuple[str, Tensor]]:
    named = [("scores", views.scores), ("thumbnail_scores", views.thumbnail_scores), ("guidance", views.guidance)]
    return [(name, tensor) for name, tensor in named if tensor is not None]
