"""Whether a selector's answer can be used: types and shapes at once, values when a host may wait for its device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from globalcom2.core.method import Method
from globalcom2.core.ranking import Merge, Ranking
from globalcom2.core.views import Views, describe
from globalcom2.errors import DataError, InputError


def check_ranking(method: Method, ranking: object, views: Views) -> None:
    """Raise unless `ranking` has the types and shapes that go with `views`. Reads no values.

    Args:
        method: Whose answer it is.
        ranking: What its function returned.
        views: What the function was given, with a batch axis.

    Raises:
        InputError: The method, what was expected and what it returned.
    """
    if not isinstance(ranking, Ranking):
        raise _wrong(method, "a globalcom2.selectors.Ranking", describe(ranking))
    batch, crops, tokens = views.scores.shape
    if views.thumbnail_scores is None:
        if ranking.thumbnail is not None:
            raise _wrong(method, "thumbnail=None for views without a thumbnail", describe(ranking.thumbnail))
    else:
        _check(method, "thumbnail", ranking.thumbnail, (batch, views.thumbnail_tokens), views)
    _check(method, "crops", ranking.crops, (batch, crops, tokens), views)
    if ranking.ratios is not None:
        _check(method, "ratios", ranking.ratios, (batch, crops), views)
    if not isinstance(ranking.thumbnail_competes, bool):
        raise _wrong(method, "thumbnail_competes=True or False", describe(ranking.thumbnail_competes))
    if ranking.thumbnail_competes and ranking.ratios is not None:
        raise _wrong(method, "ratios=None with thumbnail_competes=True", f"ratios {describe(ranking.ratios)}")
    if ranking.merge is not None:
        _check_merge(method, ranking.merge, views)


def _check_merge(method: Method, merge: object, views: Views) -> None:
    batch, crops, tokens = views.scores.shape
    if not method.merges:
        raise _wrong(method, "merge=None, since its Method does not say merges=True", describe(merge))
    if not isinstance(merge, Merge):
        raise _wrong(method, "a globalcom2.selectors.Merge as merge", describe(merge))
    if views.thumbnail_grid != views.token_grid:
        raise _wrong(
            method,
            f"merge=None where the thumbnail has a token grid of its own ({views.thumbnail_grid} and {views.token_grid} for "
            "crops)",
            "one",
        )
    _check(method, "merge.into", merge.into, (batch, 1 + crops, tokens), views, torch.int64)
    _check(method, "merge.weight", merge.weight, (batch, 1 + crops, tokens), views)


def _check(
    method: Method, name: str, tensor: object, shape: tuple[int, ...], views: Views, dtype: torch.dtype | None = None
) -> None:
    device = views.scores.device
    there = isinstance(tensor, Tensor) and tuple(tensor.shape) == shape and tensor.device == device
    if there and isinstance(tensor, Tensor):
        there = tensor.is_floating_point() if dtype is None else tensor.dtype == dtype
    if there:
        return
    kind = "a float" if dtype is None else "an int64"
    got = describe(tensor)
    if isinstance(tensor, Tensor) and tensor.device != device:
        got = f"{got} on {tensor.device}"
    raise _wrong(method, f"{kind} tensor of shape {shape} on {device} as {name}", got)


def _wrong(method: Method, expected: str, got: str) -> InputError:
    return InputError(f"method {method.name!r} ({method.where}) must return {expected}, got {got}.")


@dataclass(frozen=True, eq=False)
class Unchecked:
    """Answers of a selector whose values no host has looked at yet."""

    method: Method
    rankings: tuple[Ranking, ...]
    """Of the right types and shapes."""
    valid: Tensor
    """bool (crops, tokens), on the rankings' device."""

    def sound(self) -> Tensor:
        """Whether all values can be used, bool () on their device."""
        right = [fine for ranking in self.rankings for _, fine, _ in self._values(ranking)]
        return torch.stack(right).all()

    def require(self) -> None:
        """Raise `DataError` for scores, ratios or a merge that cannot be used; makes the host wait for its device."""
        for ranking in self.rankings:
            for name, fine, expected in self._values(ranking):
                if not bool(fine):
                    own: Tensor = _part(ranking, name)
                    raise DataError(
                        f"method {self.method.name!r} ({self.method.where}) must return {name} that are {expected}, got "
                        f"{_extremes(own)}."
                    )

    def _values(self, ranking: Ranking) -> list[tuple[str, Tensor, str]]:
        """Name, whether its values are right (bool ()), and what is expected of them."""
        finite = "finite (or minus infinity, for what is kept last)"
        found = [("crops", ((ranking.crops < torch.inf) | ~self.valid).all(), f"{finite} on valid tokens")]
        if ranking.thumbnail is not None:
            found.append(("thumbnail", (ranking.thumbnail < torch.inf).all(), finite))
        if ranking.ratios is not None:
            right = (ranking.ratios >= 0) & (ranking.ratios < torch.inf)
            found.append(("ratios", right.all(), "finite and not negative"))
        if ranking.merge is not None:
            into, weight = ranking.merge
            tokens = into.shape[-1]
            found.append(("merge.into", ((into >= -1) & (into < tokens)).all(), f"in [-1, {tokens - 1}]"))
            found.append(("merge.weight", weight.isfinite().all(), "finite"))
        return found


def _part(ranking: Ranking, name: str) -> Tensor:
    found: object = ranking
    for attribute in name.split("."):
        found = getattr(found, attribute)
    return found  # type: ignore[return-value]


def _extremes(values: Tensor) -> str:
    flat = values.double().flatten()
    nans = int(flat.isnan().sum())
    rest = flat[~flat.isnan()]
    between = f"values from {float(rest.min()):g} to {float(rest.max()):g}" if len(rest) else "no other value"
    return f"{nans} NaN and {between}" if nans else between
