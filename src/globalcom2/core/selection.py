"""`select`: views and a ratio in, a mask of the survivors out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from globalcom2.core import allocation
from globalcom2.core.budget import Budget, check_ratio
from globalcom2.core.checking import Unchecked, check_ranking
from globalcom2.core.method import Method
from globalcom2.core.methods import as_method, by_name, check_options, split_method
from globalcom2.core.newlines import check_newlines, image_budget, opens_at, uncounted_newlines
from globalcom2.core.presets import OF_COMPRESS, preset_settings
from globalcom2.core.ranking import Counts, Merge, Ranking
from globalcom2.core.views import Views
from globalcom2.errors import DataError, InputError

DEFAULT_NEWLINES = "from_3"
"""`newlines` of exact budgets where nothing is said."""
Selector = Callable[..., Ranking]
"""function(views, retention_ratio, **options) -> Ranking."""


@dataclass(frozen=True, eq=False)
class Keep:
    """Masks of the survivors; shapes carry the batch axis of the views."""

    thumbnail: Tensor
    """bool (tokens,); (0,) for an image without a thumbnail."""
    crops: Tensor
    """bool (crops, tokens); never a padded token."""
    newlines: Tensor | None = None
    """bool (lines,): newlines that stay; None where the packing has none."""
    merge: Merge | None = field(default=None, kw_only=True)
    """What a method that merges adds to kept tokens, see `Merge`; None for all others."""
    unchecked: Unchecked | None = field(default=None, kw_only=True)
    """Without `check`: what the method returned, whose values nobody has looked at yet."""


def budget_of(views: Views, retention_ratio: float, newlines: str = "counted", thumbnail_weight: float = 1.0) -> Budget:
    """The exact budget of one image: from shapes, `valid` and the ratio only."""
    thumbnail = 0 if views.thumbnail_scores is None else views.thumbnail_tokens
    return image_budget(retention_ratio, thumbnail, views.valid_count, views.line_count, newlines, thumbnail_weight)


@torch.no_grad()
def select(
    views: Views,
    retention_ratio: float,
    method: str | Method | Selector = "globalcom2",
    exact: bool | None = None,
    newlines: str | None = None,
    thumbnail_weight: float | None = None,
    check: bool = True,
    *,
    preset: str | None = None,
    **options: Any,
) -> Keep:
    """Choose the tokens that survive.

    Args:
        views: One image or a batch of images of one shape.
        retention_ratio: Fraction of the tokens to keep, in (0, 1].
        method: A name from `list_methods()`, also with options as on the command line
            ("globalcom2:alpha=0.5,newlines=none"), a `Method`, or a function(views, retention_ratio, **options) that returns
            a `Ranking`. Arguments of this function win over what the text says.
        exact: True, the default: totals follow from shapes, `valid` and the ratio alone and are always met, at least one token per
            image. False: the published code's rounding (int() per view, clip at 1, nothing redistributed); with
            default options the kept sets equal those of the paper's code.
        newlines: For packings with newline tokens (`views.lines`). "counted": the budget pays for them and a line
            keeps its newline only if it keeps a token. "from_2", "from_3" and so on: the same, but from its second, third
            ... kept token on. "none": the same budget, all of it for tokens. "all": every line keeps its newline and none
            is counted, as in the published code. Default: "from_3" if `exact`, else "all".
        thumbnail_weight: The thumbnail's ratio over `retention_ratio`, positive; the crops get the rest of the same
            budget. Needs `exact`, and a method that does not rank the thumbnail's tokens among those of the crops. Default: 1.
        check: Whether to look for values that are not finite, in the views and in what the method returns, which makes a
            host wait for its device. Without it, such values keep an arbitrary set, of the exact size still: `all_finite`
            and `require_finite` are the two halves for views, `Keep.unchecked` has those for the method. A call
            without it that has run before can be captured by a CUDA graph, if `valid` and `lines` are in pinned memory.
        preset: Settings of `globalcom2` by name, see `compress`; what else is passed wins. Its layer and its order of the
            thumbnail say nothing here: they are for `compress`.
        **options: Options of the method, see its docstring.

    Returns:
        `Keep` with boolean masks.

    Raises:
        InputError: A ratio, method or option out of range, or a method that does not return a `Ranking` of the right
            shapes.
        DataError: Scores that are not finite, from the views or from the method.
    """
    if not isinstance(views, Views):
        raise InputError(
            f"views must be a globalcom2.Views, got {type(views).__name__}. Wrap the scores: Views(scores, ...)."
        )
    given: dict[str, Any] = {"exact": exact, "newlines": newlines, "thumbnail_weight": thumbnail_weight}
    if preset is not None or (isinstance(method, str) and ":" in method):
        method, given, options = _with_named(method, preset, given, options)
    rule = _rule(retention_ratio, **given)
    chosen = as_method(method)
    if not rule.exact:
        options = {**chosen.published, **options}
    check_options(chosen, options, also=[*given, "preset"])
    batched = views.scores.ndim == 3
    views = views if batched else _with_batch_axis(views)
    if check and not bool(all_finite(views)):
        require_finite(views)
    keep = _decide(chosen, options, views, rule)
    if check and keep.unchecked is not None:
        if not bool(keep.unchecked.sound()):
            keep.unchecked.require()
        keep = replace(keep, unchecked=None)
    return keep if batched else _without_batch_axis(keep)


@dataclass(frozen=True)
class _Rule:
    """How a ranking becomes masks: checked arguments of `select`."""

    ratio: float
    exact: bool
    newlines: str
    thumbnail_weight: float


def _with_named(
    method: str | Method | Selector, preset: str | None, given: dict[str, Any], options: dict[str, Any]
) -> tuple[str | Method | Selector, dict[str, Any], dict[str, Any]]:
    """The method, the arguments of `select` and the options, with what the method's text and a preset add to them."""
    method = by_name(method)
    name, own, told = split_method(method) if isinstance(method, str) else (as_method(method).name, None, {})
    if preset is not None and own is not None:
        raise InputError(f"preset must be given once, got preset={preset!r} and method={method!r}.")
    named = own if preset is None else preset
    if named is not None:
        told = {**{k: v for k, v in preset_settings(named, name).items() if k not in OF_COMPRESS}, **told}
    rule = {argument: told.pop(argument, None) if value is None else value for argument, value in given.items()}
    rest = {**{k: v for k, v in told.items() if k not in given}, **options}
    return name if isinstance(method, str) else method, rule, rest


def _rule(retention_ratio: float, exact: bool | None, newlines: str | None, thumbnail_weight: float | None) -> _Rule:
    """Checked arguments of `select`, with its defaults for those that are None."""
    exact = check_exact(True if exact is None else exact)
    newlines = check_newlines(newlines if newlines is not None else (DEFAULT_NEWLINES if exact else "all"))
    weight = 1.0 if thumbnail_weight is None else thumbnail_weight
    check_thumbnail_weight(weight, exact)
    return _Rule(check_ratio(retention_ratio), exact, newlines, weight)


def _decide(method: Method, options: dict[str, Any], views: Views, rule: _Rule) -> Keep:
    """Ask the method, and turn its ranking into masks. Never waits for the device."""
    function = method.load()
    if method.nested:
        rankings = [_checked(method, function(views, rule.ratio, **options), views)]
        masks = _masks(method, rankings[0], views, rule)
    else:
        first = _checked(method, function(views, rule.ratio, counts=None, **options), views)
        rankings, masks = [first], _masks(method, first, views, rule)
        paid = rule.exact and opens_at(rule.newlines) > 0 and views.line_count > 0
        for _ in range(2 if paid else 1):
            counts = _counts(first, masks, views, rule)
            answer = _checked(method, function(views, rule.ratio, counts=counts, **options), views)
            rankings.append(answer._replace(ratios=first.ratios, thumbnail_competes=first.thumbnail_competes))
            masks = _masks(method, rankings[-1], views, rule)
    unchecked = Unchecked(method, tuple(rankings), views.valid_mask)
    return Keep(*masks, merge=rankings[-1].merge, unchecked=unchecked)


def _checked(method: Method, ranking: Any, views: Views) -> Ranking:
    check_ranking(method, ranking, views)
    checked: Ranking = ranking
    return checked


def _counts(ranking: Ranking, masks: tuple[Tensor, Tensor, Tensor | None], views: Views, rule: _Rule) -> Counts:
    """What the masks keep, for a method that must know it; see `Method`."""
    thumbnail, crops, _ = masks
    own = 0 if views.thumbnail_scores is None else views.thumbnail_tokens
    if ranking.ratios is None:
        total = crops.flatten(1).sum(-1, keepdim=True)
        if ranking.thumbnail_competes:
            return Counts(0, total + thumbnail.sum(-1, keepdim=True))
        return Counts(budget_of(views, rule.ratio, rule.newlines, rule.thumbnail_weight).thumbnail, total)
    if not rule.exact:
        return Counts(int(own * rule.ratio), crops.sum(-1))
    return Counts(budget_of(views, rule.ratio, rule.newlines, rule.thumbnail_weight).thumbnail, crops.sum(-1))


def _masks(method: Method, ranking: Ranking, views: Views, rule: _Rule) -> tuple[Tensor, Tensor, Tensor | None]:
    """Thumbnail (batch, tokens), crops (batch, crops, tokens) and newlines (batch, lines), as in `Keep`."""
    valid, opens = views.valid_mask, opens_at(rule.newlines) if views.line_count else 0
    lines = None if views.lines is None else views.lines.to(valid.device, non_blocking=True)
    budget = budget_of(views, rule.ratio, rule.newlines, rule.thumbnail_weight)
    newlines = None
    if ranking.thumbnail_competes and rule.thumbnail_weight != 1.0:
        raise InputError(
            f"thumbnail_weight must be 1 for method {method.name!r}, got {rule.thumbnail_weight:g}: it ranks the thumbnail's "
            "tokens among those of the crops. Leave thumbnail_weight out."
        )
    if ranking.ratios is None:
        if not rule.exact:
            raise InputError(
                f"exact must be True for method {method.name!r}, got False: it ranks the tokens of all crops in one order, "
                "which has no published rounding. Leave exact out."
            )
        own = lines if opens else None
        thumbnail, crops, newlines = allocation.joint(ranking, budget, valid, own, views.line_count, max(opens, 1))
    elif not rule.exact:
        thumbnail, crops = allocation.as_published(ranking, rule.ratio, valid)
    elif opens and lines is not None:
        thumbnail, crops, newlines = allocation.exact_with_newlines(
            ranking, budget, valid, lines, views.line_count, opens
        )
    else:
        thumbnail, crops = allocation.exact(ranking, budget, valid)
    if lines is not None and newlines is None:
        newlines = uncounted_newlines(crops, lines, views.line_count, rule.newlines, rule.exact)
    if thumbnail is None:
        thumbnail = valid.new_zeros(len(crops), 0)
    return thumbnail, crops, newlines


def check_exact(exact: bool) -> bool:
    """Return `exact`. Raise `InputError` unless it is True or False."""
    if not isinstance(exact, bool):
        raise InputError(f"exact must be True or False, got {exact!r}.")
    return exact


def check_thumbnail_weight(weight: float, exact: bool) -> None:
    """Raise `InputError` for a weight out of range, or one that the published rounding cannot follow."""
    if isinstance(weight, bool) or not isinstance(weight, Real) or not 0.0 < weight < float("inf"):
        raise InputError(f"thumbnail_weight must be a positive number, got {weight!r}.")
    if weight != 1.0 and not exact:
        raise InputError(f"thumbnail_weight must be 1 with exact=False, got {weight!r}: every view has its own share.")


def _with_batch_axis(views: Views) -> Views:
    lifted = copy.copy(views)  # checked already
    names = ("scores", "features", "thumbnail_scores", "guidance", "layer_scores", "keys", "cls", "crop_features")
    for name in (*names, "guide_scores"):
        tensor = getattr(views, name)
        object.__setattr__(lifted, name, None if tensor is None else tensor[None])
    return lifted


def _without_batch_axis(keep: Keep) -> Keep:
    newlines = None if keep.newlines is None else keep.newlines[0]
    merge = None if keep.merge is None else Merge(*(part[0] for part in keep.merge))
    return Keep(keep.thumbnail[0], keep.crops[0], newlines, merge=merge, unchecked=keep.unchecked)


def all_finite(views: Views) -> Tensor:
    """Whether all values are finite, bool () on their device; a sum that overflows counts as not finite."""
    tensors = [tensor for _, tensor in _values(views)]
    return sum(tensor.double().sum() for tensor in tensors).isfinite()  # type: ignore[union-attr]


def require_finite(views: Views) -> None:
    """Raise `DataError` for values that are not finite, padding aside."""
    for name, tensor in _values(views):
        wrong = ~tensor.isfinite() & (True if name in ("thumbnail_scores", "guide_scores") else views.valid_mask)
        if wrong.any():
            raise DataError(
                f"{name} must be finite, got {int(wrong.sum())} NaN or infinite values. "
                "Check the vision tower's output; half precision overflows in some towers, try bfloat16 or float32."
            )


def _values(views: Views) -> list[tuple[str, Tensor]]:
    names = ("scores", "thumbnail_scores", "guidance", "guide_scores")
    return [(name, tensor) for name in names if (tensor := getattr(views, name)) is not None]
