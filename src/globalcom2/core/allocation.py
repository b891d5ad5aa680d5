"""From a ranking and a budget to masks. Whatever the scores say, the totals come out exact."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from globalcom2.core.budget import Budget
from globalcom2.core.ranking import Ranking

LARGEST_RATIO = 1e6  # beyond it shares would not sum up in double precision; right ones are of the order of one


def apportion(totals: Tensor, weights: Tensor, floors: Tensor, caps: Tensor) -> Tensor:
    """Share whole numbers out in proportion to weights, by largest remainder, within floors and caps.

    Args:
        totals: int (...), with floors.sum() <= total <= caps.sum().
        weights: float (..., n), non-negative.
        floors: int (..., n).
        caps: int (n,) or (..., n).

    Returns:
        int64 (..., n) that sums to `totals` exactly. What a capped entry cannot take goes to the others in proportion;
        equal remainders go to the lower index.
    """
    if caps.shape[-1] == 0:
        return floors.long()
    low, high = floors.double(), caps.double()
    weights = weights.double().clamp(min=1e-12)
    # total(c) = sum(clip(c * weight, floor, cap)) is piecewise linear in the common factor c: find its segment, then c.
    points = torch.cat([low / weights, high / weights], -1).sort(-1).values
    sums = (points[..., None] * weights[..., None, :]).clamp(low[..., None, :], high.unsqueeze(-2)).sum(-1)
    goal = totals.double()[..., None]
    right = torch.searchsorted(sums, goal.expand(*sums.shape[:-1], 1).contiguous()).clamp(1, sums.shape[-1] - 1)
    x0, x1 = points.gather(-1, right - 1), points.gather(-1, right)
    y0, y1 = sums.gather(-1, right - 1), sums.gather(-1, right)
    factor = x0 + (x1 - x0) * ((goal - y0) / (y1 - y0).clamp(min=1e-12)).clamp(0, 1)
    quotas = (factor * weights).clamp(low, high)
    base = (quotas + 1e-9).floor().minimum(high)
    # Equal shares differ in their last bits, and differently in a batch.
    remainders = (quotas - base).round(decimals=9).masked_fill(base >= high, -1.0)
    missing = totals[..., None] - base.long().sum(-1, keepdim=True)
    return base.long() + (ranks(remainders) < missing)


def ranks(values: Tensor) -> Tensor:
    """Position of each value in descending order along the last axis, int64; equal values by index."""
    order = values.argsort(dim=-1, descending=True, stable=True)
    position = torch.arange(values.shape[-1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, position)


def keep_best(scores: Tensor, count: int) -> Tensor:
    """Mask of the `count` highest scores along the last axis; NaN counts as the lowest."""
    return ranks(_sortable(scores)) < count


def as_published(ranking: Ranking, retention_ratio: float, valid: Tensor) -> tuple[Tensor | None, Tensor]:
    """The published code's rounding: int() of every view's own share, nothing redistributed. (thumbnail, crops)."""
    thumbnail = ranking.thumbnail
    kept = None if thumbnail is None else keep_best(thumbnail, int(thumbnail.shape[-1] * retention_ratio))
    counts = (valid.sum(-1).double() * _ratios(ranking)).long()
    return kept, _rank_valid(ranking.crops, valid) < counts[..., None]


def exact(ranking: Ranking, budget: Budget, valid: Tensor) -> tuple[Tensor | None, Tensor]:
    """Masks that keep exactly `budget.thumbnail` and `budget.crops` tokens, never a padded one. (thumbnail, crops)."""
    position = _rank_valid(ranking.crops, valid)
    counts = _share(torch.full((1,), budget.crops, device=valid.device), _ratios(ranking), valid)[:, 0]
    return _thumbnail(ranking, budget), position < counts[..., None]


def exact_with_newlines(
    ranking: Ranking, budget: Budget, valid: Tensor, lines: Tensor, line_count: int, opens: int = 1
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Masks that keep exactly `budget.crops` of tokens and newlines: a line's `opens`-th token also costs its newline.

    The largest number of tokens whose lines can be paid is found among all candidates at once. What is left over (rarely
    more than one) buys the next tokens that open no line, and where there are none, tokens without their newline. What is
    left over when all tokens are kept buys newlines, in the order of their lines.

    Args:
        ranking: As a selector returns it, with a batch axis.
        budget: From `keep_counts` with `newlines=line_count`.
        valid: bool (crops, tokens).
        lines: int (crops, tokens), -1 on padding.
        line_count: Number of lines.
        opens: Which of a line's tokens makes its newline count and stay; at least 1.

    Returns:
        (thumbnail (batch, tokens) or None, crops (batch, crops, tokens), newlines (batch, line_count)).
    """
    batch, crops, tokens = ranking.crops.shape
    position = _rank_valid(ranking.crops, valid)
    totals = torch.arange(max(0, budget.crops - line_count), budget.crops + 1, device=valid.device).clamp(
        max=valid.sum()
    )
    counts = _share(totals, _ratios(ranking), valid)  # (batch, candidates, crops)
    held = _tokens_on_lines(position, counts, lines, line_count)
    cost = totals + (held >= opens).sum(-1)
    candidates = torch.arange(len(totals), device=valid.device)
    chosen = torch.where(cost <= budget.crops, candidates, 0).amax(-1)
    row = torch.arange(batch, device=valid.device)
    counts, held, left = counts[row, chosen], held[row, chosen], budget.crops - cost[row, chosen]

    keep = position < counts[..., None]
    spare = (valid & ~keep).flatten(1)
    wanted = _next_in_line(position, counts, spare, held, lines, opens)
    first = wanted.topk(min(line_count + 1, crops * tokens), largest=False).indices
    added = torch.arange(first.shape[1], device=valid.device) < left[:, None]
    keep |= (spare & torch.zeros_like(spare).scatter(-1, first, added)).unflatten(1, (crops, tokens))
    newlines = held >= opens
    unbought = (left - spare.sum(-1)).clamp(min=0)[:, None]
    newlines |= ((~newlines).cumsum(-1) <= unbought) & ~newlines
    return _thumbnail(ranking, budget), keep, newlines


def _tokens_on_lines(position: Tensor, counts: Tensor, lines: Tensor, line_count: int) -> Tensor:
    """How many tokens each line keeps if every crop keeps its best `counts`, int64 (batch, candidates, line_count)."""
    every_line = torch.arange(line_count, device=lines.device)
    held = torch.zeros(*counts.shape[:2], line_count, dtype=torch.int64, device=lines.device)
    for crop, own in enumerate(lines):  # one at a time: a table of all crops would be large
        ordered = own.expand_as(position[:, crop]).gather(-1, position[:, crop].argsort(-1))
        best = F.pad((ordered[..., None] == every_line).cumsum(1), (0, 0, 1, 0))  # (batch, 1 + tokens, lines)
        held += best.gather(1, counts[..., crop, None].expand(-1, -1, line_count))
    return held


def _next_in_line(position: Tensor, counts: Tensor, spare: Tensor, held: Tensor, lines: Tensor, opens: int) -> Tensor:
    """In which order left-over budget buys spare tokens, int64 (batch, places), lowest first, all different.

    Tokens of open lines come first, then the first spare one of every line that it does not open, then all others.
    """
    crops, tokens = lines.shape
    line = lines.clamp(min=0).flatten().expand(len(spare), -1)
    on_line = held.gather(-1, line)
    urgency = (position - counts[..., None]).flatten(1)
    urgency = urgency + torch.where(on_line >= opens, 0, tokens)
    place = torch.arange(crops * tokens, device=lines.device)
    order = (urgency * len(place) + place).masked_fill(~spare, 4 * tokens * len(place))
    if opens > 1:
        least = torch.full_like(held, torch.iinfo(torch.int64).max).scatter_reduce(-1, line, order, "amin")
        closed = (on_line < opens) & ((on_line + 1 >= opens) | (order != least.gather(-1, line)))
        order = order + torch.where(spare & closed, 2 * tokens * len(place), 0)
    return order


def joint(
    ranking: Ranking, budget: Budget, valid: Tensor, lines: Tensor | None = None, line_count: int = 0, opens: int = 1
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Masks that keep exactly the budget of one order over all crops, equal scores by index, never a padded token.

    Tokens are kept in order as long as the budget pays for them; with `lines`, a line's `opens`-th token also costs the
    line's newline. One that is left over, because the next token would cost two, buys the next token in order that opens
    no line, and where there is none, the next token without its newline. What is left over when all tokens are kept buys
    newlines, in the order of their lines.

    Args:
        ranking: As a selector returns it, with a batch axis; `ratios` are not read.
        budget: With `ranking.thumbnail_competes`, the thumbnail and the crops share `total`.
        valid: bool (crops, tokens).
        lines: int (crops, tokens), -1 on padding. None: newlines cost nothing.
        line_count: Number of lines.
        opens: Which of a line's tokens makes its newline count and stay; at least 1.

    Returns:
        (thumbnail (batch, tokens) or None, crops (batch, crops, tokens), newlines (batch, line_count) or None).
    """
    batch, crops, tokens = ranking.crops.shape
    scores, real = _sortable(ranking.crops).flatten(1), valid.flatten()
    line = torch.full_like(real, -1, dtype=torch.int64) if lines is None else lines.flatten().long()
    own, total = 0, budget.crops
    if ranking.thumbnail_competes and ranking.thumbnail is not None:
        own, total = ranking.thumbnail.shape[1], budget.total
        scores = torch.cat([_sortable(ranking.thumbnail), scores], 1)
        real, line = F.pad(real, (own, 0), value=True), F.pad(line, (own, 0), value=-1)
    order = scores.masked_fill(~real, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    real, line = real[order], line[order]  # from here on, in order

    cost = 1 + ((nth_of_its_kind(line) == opens) & (line >= 0)).long()
    kept = (cost.cumsum(-1) <= total) & real
    held = torch.zeros(batch, line_count + 1, dtype=torch.int64, device=valid.device)
    held = held.scatter_add(-1, line + 1, kept.long())
    left = total - torch.where(kept, cost, 0).sum(-1, keepdim=True)
    spare = real & ~kept
    costs_one = spare & ((line < 0) | (held.gather(-1, line + 1) + 1 != opens))
    # One at most is left over where a token is spare.
    buys = torch.where(costs_one.any(-1, keepdim=True), costs_one, spare)
    kept = kept | (buys & (buys.cumsum(-1) == 1) & (left > 0))
    mask = torch.zeros_like(kept).scatter(-1, order, kept)

    thumbnail = mask[:, :own] if own else _thumbnail(ranking, budget)
    newlines = None
    if lines is not None:
        newlines = held[:, 1:] >= opens
        unbought = torch.where(spare.any(-1, keepdim=True), 0, left)
        newlines = newlines | ((~newlines).cumsum(-1) <= unbought)
    return thumbnail, mask[:, own:].unflatten(1, (crops, tokens)), newlines


def nth_of_its_kind(kinds: Tensor) -> Tensor:
    """For each place, how many places up to it have the same number, int64 (..., places), as `kinds`."""
    together = kinds.argsort(dim=-1, stable=True)
    ordered = kinds.gather(-1, together)
    place = torch.arange(kinds.shape[-1], device=kinds.device).expand_as(kinds)
    begins = F.pad(ordered[..., 1:] != ordered[..., :-1], (1, 0), value=True)
    start = torch.where(begins, place, 0).cummax(-1).values
    return torch.empty_like(kinds).scatter(-1, together, place - start + 1)


def _thumbnail(ranking: Ranking, budget: Budget) -> Tensor | None:
    return None if ranking.thumbnail is None else keep_best(ranking.thumbnail, budget.thumbnail)


def _sortable(scores: Tensor) -> Tensor:
    """Scores above minus infinity, so that padding can stand after all of them; NaN becomes the lowest one."""
    return scores.nan_to_num(nan=torch.finfo(scores.dtype).min)


def _ratios(ranking: Ranking) -> Tensor:
    """Ratios that can be shared out, float64 (batch, crops): NaN and what is negative count as zero."""
    ratios: Tensor = ranking.ratios  # type: ignore[assignment]
    return ratios.double().nan_to_num(nan=0.0, posinf=LARGEST_RATIO).clamp(0.0, LARGEST_RATIO)


def _rank_valid(scores: Tensor, valid: Tensor) -> Tensor:
    """Ranks in each crop, with padding after every valid token."""
    return ranks(_sortable(scores).masked_fill(~valid, -torch.inf))


def _share(totals: Tensor, ratios: Tensor, valid: Tensor) -> Tensor:
    """Tokens per crop, (batch, len(totals), crops): by ratio and valid size, at least one where the total allows."""
    caps = valid.sum(-1)
    one_each = caps.clamp(max=1)
    floors = one_each * (totals[:, None] >= one_each.sum())
    weights = (ratios * caps)[:, None].expand(-1, len(totals), -1)
    return apportion(totals.expand(ratios.shape[0], -1), weights, floors.expand_as(weights), caps)
