"""GlobalCom²: the thumbnail has a say in how many tokens each crop may keep, and in which."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from globalcom2.core.budget import keep_counts
from globalcom2.core.ranking import Ranking
from globalcom2.core.views import Views
from globalcom2.errors import InputError
from globalcom2.selectors.canvas import Canvas
from globalcom2.selectors.competition import compete

# Softness of the competition between crops, by score type. The 10 of logits is the paper's; 3, 30 and 100 are no better on
# the mini model (benchmarks/results/mini-sweep.json). Logit sums over a crop's share of the thumbnail differ by tens, while
# softmaxed attention sums to at most one in a whole view, where 10 would make every crop's share equal: its 0.1 was chosen by
# hand. So were the values of the mean query and of similarity, whose sums are of the size of those of logits.
TEMPERATURES = {"logits": 10.0, "attention": 0.1, "mean_query": 10.0, "received": 0.1, "similarity": 10.0}
# The temperature of VidCom² (https://arxiv.org/abs/2505.14454), which belongs to the Gaussian kernels that guide in videos.
GUIDANCE_TEMPERATURE = 0.01
# Score types that a softmax makes attention of.
LOGITS = ("logits", "mean_query")
# The part of a budget by attention that is shared evenly, so that a wrong score costs no crop everything. Chosen by hand;
# less kept hardly more digits on the mini model (training/mini/LOG.md, fifth edition).
EVEN = 0.25
ALLOCATIONS = ("joint", "softmax", "attention")
ALPHA, ALPHAS = 0.3, {"joint": 0.15}
LIKENESS, CROP_PRICE = 1.5, 0.5  # chosen on the tuning set, where they lie on a plateau
LARGEST = 1e6
ROUNDING = 1e-12  # differences of doubles below this part of the largest one are none
EPSILON = 1e-8  # against division by zero; the published code's
# Tokens of the paper's views, 24 x 24. Sums of logits and similarities are taken as if every thumbnail had as many, so
# that a temperature means the same at every resolution.
PAPER_TOKENS = 576


def globalcom2(
    views: Views,
    retention_ratio: float,
    *,
    allocation: str | None = None,
    alpha: float | None = None,
    likeness: float | None = None,
    crop_price: float | None = None,
    temperature: float | None = None,
    crop_mass: str | None = None,
    regions: str = "overlap",
) -> Ranking:
    """Thumbnail compression, adaptive compression adjustment and holistic token evaluation.

    Long: arguments are checked, then the allocation that is asked for is followed.

    Args:
        views: Images with a thumbnail or a guide, or videos with guidance.
        retention_ratio: Fraction to keep, in (0, 1].
        allocation: How crops share the budget. "joint" puts the tokens of all crops into one order by worth. A token's worth
            is what its score is above the mean of its crop, plus what the thumbnail thinks of the crop's region, whatever
            the scale and offset of the scores. Tokens that resemble one before them, and further tokens of a crop that has
            many, come later. "softmax" is the paper's: the ratio of a crop stays between R * (1 - 1 / crops) and
            R * (2 - 1 / crops). "attention", for scores before the softmax, gives three quarters of the budget to the
            crops in proportion to the attention that they get, one quarter evenly; a crop's attention is the mean of its
            share of the thumbnail's and its share where all crops compete in one softmax. Default: "joint"; "softmax" for
            videos with guidance, or where one of its options is given.
        alpha: Weight of the thumbnail's view of a token against the crop's own, in [0, 1]. The paper's is 0.5. Default:
            0.15 with "joint", else 0.3.
        likeness: Of "joint": how much less a token is worth that equals one before it, in standard deviations of the
            scores. Needs features: without them, nothing is alike. Default: 1.5.
        crop_price: Of "joint": a token is worth less by this times log(1 + tokens of its crop before it). Default: 0.5.
        temperature: Of "softmax": softness of the competition between crops. Default: 0.1 for attention given or
            received, 10 for all others; with guidance 0.01, whatever the scores.
        crop_mass: Of "softmax": how a crop's region of the thumbnail counts, as the "sum" (the default),
            "mean" or "max" of its scores. Guidance covers every crop whole, so that "sum" is "mean" there.
        regions: "overlap" weighs each thumbnail cell by how much of it the crop's valid area covers, and "sum" is per
            equal area of a 576-token thumbnail, so that neither resolution, padding nor a constant added to all scores
            favours a crop; "blocks", of "softmax", cuts the thumbnail into equal blocks, the remainder going to
            the last one, as the published code does.

    Returns:
        The thumbnail by its own scores; with "joint" one order over all crops. Else crop tokens by `alpha` * thumbnail +
        (1 - `alpha`) * local score, each L2-normalised over the crop, and ratios R * (1 + softmax(mass / temperature) -
        mean), or by attention.

    Raises:
        InputError: An option out of range or without effect, or `allocation="attention"` for scores that are not logits.

    Paper: https://arxiv.org/abs/2501.05179. Differs from the paper: "joint" and "attention" are this project's, chosen on
    the mini model's tuning set (benchmarks/results/mini-commander.json). With "softmax" it follows the published code where
    they disagree (scores before the softmax, L2 normalisation); `regions="overlap"` equals the code's blocks where nothing
    is padded and also fits padded and non-divisible grids.
    """
    if crop_mass not in (None, "sum", "mean", "max"):
        raise InputError(f"crop_mass must be one of sum, mean, max, got {crop_mass!r}.")
    if regions not in ("overlap", "blocks"):
        raise InputError(f"regions must be one of overlap, blocks, got {regions!r}.")
    if views.commander is None and views.guidance is None:
        raise InputError(
            "thumbnail_scores must be given for method 'globalcom2', got None. Use 'uniform' without a thumbnail."
        )
    blocks = None if regions == "overlap" else regions
    own_options: dict[str, dict[str, Any]] = {
        "joint": {"likeness": likeness, "crop_price": crop_price},
        "softmax": {"temperature": temperature, "crop_mass": crop_mass, "regions": blocks},
    }
    allocation = _allocation(allocation, views, own_options)
    alpha = _within("alpha", ALPHAS.get(allocation, ALPHA) if alpha is None else alpha, 1.0)
    likeness = _within("likeness", LIKENESS if likeness is None else likeness, LARGEST)
    crop_price = _within("crop_price", CROP_PRICE if crop_price is None else crop_price, LARGEST)
    if temperature is None:
        temperature = TEMPERATURES[views.score_type] if views.guidance is None else GUIDANCE_TEMPERATURE
    if isinstance(temperature, bool) or not isinstance(temperature, Real) or not 0.0 < temperature < float("inf"):
        raise InputError(f"temperature must be a positive number, got {temperature!r}.")
    thumbnail, valid = views.thumbnail_scores, views.valid_mask
    if views.valid_count == 0:
        return Ranking(thumbnail, views.scores, views.scores.new_zeros(views.scores.shape[:-1], dtype=torch.float64))

    canvas = None if views.commander is None else Canvas(views)
    if allocation == "joint":
        seen = views.guidance if canvas is None else canvas.project(_map(views, torch.float64))
        own = 0 if thumbnail is None else views.thumbnail_tokens
        count = keep_counts(retention_ratio, own, views.valid_count, views.line_count).crops
        worth = _worth(views.scores, seen, valid, alpha)  # type: ignore[arg-type]
        return Ranking(thumbnail, compete(worth, valid, views.crop_features, count, likeness, crop_price))
    seen = views.guidance.double() if canvas is None else canvas.project(_map(views))  # type: ignore[union-attr]
    if allocation == "attention" and canvas is not None:
        ratios = retention_ratio * (EVEN + (1 - EVEN) * _attention_density(views, canvas))
    else:
        how = crop_mass or "sum"
        mass = _by_guidance(views, how) if canvas is None else _by_thumbnail(views, canvas, how, regions)
        shares = ((mass - mass.amax(-1, keepdim=True)) / temperature).exp()
        shares = shares / (shares.sum(-1, keepdim=True) + EPSILON)
        ratios = (retention_ratio * (1 + shares - shares.mean(-1, keepdim=True))).clamp(max=1.0)
    return Ranking(thumbnail, alpha * _unit(seen, valid) + (1 - alpha) * _unit(views.scores, valid), ratios)


def _within(name: str, value: Any, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 <= float(value) <= most:
        raise InputError(f"{name} must be a number in [0, {most:g}], got {value!r}.")
    return float(value)


def _allocation(allocation: str | None, views: Views, own_options: dict[str, dict[str, Any]]) -> str:
    """The allocation that is asked for, or else fits the views and the other options."""
    given = {kind: [name for name, value in own.items() if value is not None] for kind, own in own_options.items()}
    if allocation is None:
        softmax = given["softmax"] or (views.guidance is not None and not given["joint"])
        allocation = "softmax" if softmax else "joint"
    if allocation not in ALLOCATIONS:
        raise InputError(f"allocation must be one of {', '.join(ALLOCATIONS)}, got {allocation!r}.")
    for kind, names in given.items():
        if names and kind != allocation:
            raise InputError(
                f"{names[0]} must be left out with allocation={allocation!r}, got {own_options[kind][names[0]]!r}. Use "
                f"allocation={kind!r}{', which exact=False needs, too' if names[0] == 'regions' else ''}."
            )
    if allocation == "attention" and (views.score_type not in LOGITS or views.commander is None):
        got = f"score_type {views.score_type!r}" if views.guidance is None else "a video's guidance"
        raise InputError(
            f"allocation='attention' needs a thumbnail and scores before the softmax ({' or '.join(LOGITS)}), got {got}. "
            "Leave allocation out."
        )
    return allocation


def _worth(scores: Tensor, seen: Tensor, valid: Tensor, alpha: float) -> Tensor:
    """What tokens are worth before likeness and price, float64 (batch, crops, tokens).

    Which tokens of a crop: its own scores less their mean, in units of their deviation over all crops. Which crops: the
    mean of what the thumbnail says of their tokens, standardised over the image. No offset of a view and no scale matters.
    """
    count = valid.sum(-1).clamp(min=1)[..., None]
    own = scores.double().masked_fill(~valid, 0.0)
    centred = (own - own.sum(-1, keepdim=True) / count).masked_fill(~valid, 0.0)
    own = _per_deviation(centred, own, valid)
    seen = seen.double().masked_fill(~valid, 0.0)
    centred = (seen - seen.sum((-2, -1), keepdim=True) / valid.sum()).masked_fill(~valid, 0.0)
    seen = _per_deviation(centred, seen, valid)
    region = seen.sum(-1, keepdim=True) / count
    worth: Tensor = (1 - alpha) * (own + region) + alpha * seen
    return worth.round(decimals=6)  # sums differ in their last bits in a batch


def _per_deviation(centred: Tensor, values: Tensor, valid: Tensor) -> Tensor:
    """Centred `values` over their standard deviation in an image; zeros where all are equal but for rounding."""
    deviation = (centred.square().sum((-2, -1), keepdim=True) / valid.sum()).sqrt()
    alike = deviation <= ROUNDING * values.abs().amax((-2, -1), keepdim=True)
    return torch.where(alike, 0.0, centred / deviation.clamp(min=1e-100))


def _attention_density(views: Views, canvas: Canvas) -> Tensor:
    """Attention per valid token of every crop over that of the whole image, float64 (batch, crops).

    A crop's share of the attention is the mean of two: the thumbnail's, which sees what matters in the whole but no small
    print, and that of the crops themselves, which see the print. Equal weights for the two were chosen by hand.
    """
    scores, grid = views.commander  # type: ignore[misc]
    rows, cols = canvas.overlaps()
    seen = rows @ scores.double().softmax(-1).unflatten(-1, grid) @ cols.T
    valid = views.valid_mask
    competing = views.scores.double().masked_fill(~valid, -torch.inf).flatten(-2).softmax(-1)
    share = (seen.flatten(-2) + competing.view(views.scores.shape).sum(-1)) / 2
    count = valid.sum(-1)
    density: Tensor = share * count.sum() / count.clamp(min=1)
    return density


def _by_guidance(views: Views, crop_mass: str) -> Tensor:
    """Mass of every crop, (batch, crops), from the guidance of its own tokens."""
    guidance: Tensor = views.guidance.double()  # type: ignore[union-attr]
    valid = views.valid_mask
    if crop_mass == "max":
        return guidance.masked_fill(~valid, -torch.inf).amax(-1)
    count = valid.sum(-1)
    mean = guidance.masked_fill(~valid, 0.0).sum(-1) / count.clamp(min=1)
    return mean.masked_fill(count == 0, -torch.inf)


def _by_thumbnail(views: Views, canvas: Canvas, crop_mass: str, regions: str) -> Tensor:
    """Mass of every crop, (batch, crops), from its region of the thumbnail."""
    weights = canvas.overlaps() if regions == "overlap" else canvas.blocks()
    # Softmaxed scores sum to one in a view of any resolution, others grow with it.
    scores, _ = views.commander  # type: ignore[misc]
    tokens = scores.shape[-1] if views.score_type in ("attention", "received") else PAPER_TOKENS
    mass = _mass(_map(views).double(), *weights, crop_mass, tokens if regions == "overlap" else None)
    return mass.masked_fill(~views.valid_mask.any(-1), -torch.inf) if regions == "overlap" else mass


def _map(views: Views, dtype: torch.dtype = torch.float32) -> Tensor:
    """The commander's scores, (batch, height, width). The published code has single precision."""
    scores, grid = views.commander  # type: ignore[misc]
    return scores.to(dtype).unflatten(-1, grid)  # type: ignore[no-any-return]


def _mass(thumbnail_map: Tensor, rows: Tensor, cols: Tensor, how: str, per_area_of: int | None) -> Tensor:
    if how == "max":
        covered = (rows[:, None, :, None] > 0) & (cols[None, :, None, :] > 0)
        return thumbnail_map[:, None, None].masked_fill(~covered, -torch.inf).amax((-2, -1)).flatten(1)
    mass: Tensor = (rows @ thumbnail_map @ cols.T).flatten(1)
    area = torch.outer(rows.sum(1), cols.sum(1)).flatten()
    if how == "sum" and per_area_of is None:
        return mass
    mean = mass / area.clamp(min=torch.finfo(mass.dtype).tiny)
    return mean if how == "mean" else mean * (per_area_of or 1) / (area > 0).sum()


def _unit(scores: Tensor, valid: Tensor) -> Tensor:
    """Scale each crop's valid scores to unit length, in double precision: squares of large scores overflow in single."""
    unit: Tensor = F.normalize(scores.double().masked_fill(~valid, 0.0), dim=-1)
    return unit
