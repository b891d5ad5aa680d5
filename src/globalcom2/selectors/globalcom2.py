"""GlobalCom²: the thumbnail has a say in how many tokens each crop may keep, and in which."""

from __future__ import annotations

from functools import lru_cache
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from globalcom2.core.ranking import Ranking
from globalcom2.core.views import Views
from globalcom2.errors import InputError

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
EPSILON = 1e-8  # against division by zero; the published code's
# Tokens of the paper's views, 24 x 24. Sums of logits and similarities are taken as if every thumbnail had as many, so
# that a temperature means the same at every resolution.
PAPER_TOKENS = 576


def globalcom2(
    views: Views,
    retention_ratio: float,
    *,
    temperature: float | None = None,
    alpha: float = 0.3,
    crop_mass: str | None = None,
    regions: str = "overlap",
    allocation: str | None = None,
) -> Ranking:
    """Thumbnail compression, adaptive compression adjustment and holistic token evaluation.

    Args:
        views: Images with a thumbnail, or videos with guidance.
        retention_ratio: Fraction to keep, in (0, 1].
        temperature: Of "softmax" allocation: softness of the competition between crops. Default: 0.1 for attention given
            or received, 10 for all others; with guidance 0.01, whatever the scores.
        alpha: Weight of the thumbnail's view of a token against the crop's own, in [0, 1]. The paper's is 0.5; the default
            was chosen by benchmarks/results/mini-sweep.json and mini-digits-kept.json.
        crop_mass: Of "softmax" allocation: how a crop's region of the thumbnail counts, as the "sum" (the default),
            "mean" or "max" of its scores. Guidance covers every crop whole, so that "sum" is "mean" there.
        regions: "overlap" weighs each thumbnail cell by how much of it the crop's valid area covers, and "sum" is per
            equal area of a 576-token thumbnail, so that neither resolution, padding nor a constant added to all scores
            favours a crop; "blocks", of "softmax" allocation, cuts the thumbnail into equal blocks, the remainder going to
            the last one, as the published code does.
        allocation: How crops share the budget. "softmax" is the paper's: the ratio of a crop stays between
            R * (1 - 1 / crops) and R * (2 - 1 / crops). "attention" gives three quarters of the budget to the crops in
            proportion to the attention that they get, one quarter evenly; a crop's attention is the mean of its share of
            the thumbnail's and its share where all crops compete in one softmax. Default: "attention" for scores before
            the softmax, unless an option of "softmax" is given; "softmax" for all others.

    Returns:
        The thumbnail by its own scores; crop tokens by `alpha` * thumbnail + (1 - `alpha`) * local score, each
        L2-normalised over the crop; ratios R * (1 + softmax(mass / temperature) - mean), or by attention.

    Raises:
        InputError: An option out of range or without effect, or `allocation="attention"` for scores that are not logits.

    Paper: https://arxiv.org/abs/2501.05179. Differs from the paper: follows the published code where they disagree
    (scores before the softmax, L2 normalisation); `regions="overlap"` equals the code's blocks where nothing is padded
    and also fits padded and non-divisible grids.
    """
    if crop_mass not in (None, "sum", "mean", "max"):
        raise InputError(f"crop_mass must be one of sum, mean, max, got {crop_mass!r}.")
    if regions not in ("overlap", "blocks"):
        raise InputError(f"regions must be one of overlap, blocks, got {regions!r}.")
    if views.thumbnail_scores is None and views.guidance is None:
        raise InputError(
            "thumbnail_scores must be given for method 'globalcom2', got None. Use 'uniform' without a thumbnail."
        )
    allocation = _allocation(allocation, views, temperature, crop_mass, regions)
    if not isinstance(alpha, Real) or not 0.0 <= alpha <= 1.0:
        raise InputError(f"alpha must be a number in [0, 1], got {alpha!r}.")
    if temperature is None:
        temperature = TEMPERATURES[views.score_type] if views.guidance is None else GUIDANCE_TEMPERATURE
    if not isinstance(temperature, Real) or not 0.0 < temperature < float("inf"):
        raise InputError(f"temperature must be a positive number, got {temperature!r}.")
    thumbnail, valid = views.thumbnail_scores, views.valid_mask
    if views.valid_count == 0:
        return Ranking(thumbnail, views.scores, views.scores.new_zeros(views.scores.shape[:-1], dtype=torch.float64))

    canvas = None if thumbnail is None else Canvas(views)
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


def _allocation(
    allocation: str | None, views: Views, temperature: float | None, crop_mass: str | None, regions: str
) -> str:
    """The allocation that is asked for, or else fits the scores and the other options."""
    of_softmax = {
        "temperature": temperature is not None,
        "crop_mass": crop_mass is not None,
        "regions": regions == "blocks",
    }
    fits = views.score_type in LOGITS and views.thumbnail_scores is not None
    if allocation is None:
        return "attention" if fits and not any(of_softmax.values()) else "softmax"
    if allocation not in ("softmax", "attention"):
        raise InputError(f"allocation must be one of softmax, attention, got {allocation!r}.")
    if allocation == "attention" and not fits:
        got = f"score_type {views.score_type!r}" if views.guidance is None else "a video's guidance"
        raise InputError(
            f"allocation='attention' needs a thumbnail and scores before the softmax ({' or '.join(LOGITS)}), got {got}. "
            "Leave allocation out."
        )
    for name, given in of_softmax.items():
        if given and allocation == "attention":
            raise InputError(f"{name} must be left out with allocation='attention', got one. Use allocation='softmax'.")
    return allocation


def _attention_density(views: Views, canvas: Canvas) -> Tensor:
    """Attention per valid token of every crop over that of the whole image, float64 (batch, crops).

    A crop's share of the attention is the mean of two: the thumbnail's, which sees what matters in the whole but no small
    print, and that of the crops themselves, which see the print. Equal weights for the two were chosen by hand.
    """
    thumbnail: Tensor = views.thumbnail_scores  # type: ignore[assignment]
    rows, cols = canvas.overlaps()
    seen = rows @ thumbnail.double().softmax(-1).unflatten(-1, views.thumbnail_grid) @ cols.T  # type: ignore[arg-type]
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
    tokens = views.thumbnail_tokens if views.score_type in ("attention", "received") else PAPER_TOKENS
    mass = _mass(_map(views).double(), *weights, crop_mass, tokens if regions == "overlap" else None)
    return mass.masked_fill(~views.valid_mask.any(-1), -torch.inf) if regions == "overlap" else mass


def _map(views: Views) -> Tensor:
    """The thumbnail's scores, float32 (batch, height, width)."""
    thumbnail: Tensor = views.thumbnail_scores.float()  # type: ignore[union-attr]
    unflattened: Tensor = thumbnail.unflatten(-1, views.thumbnail_grid)  # type: ignore[arg-type]
    return unflattened


class Canvas:
    """Where crop tokens lie on the stitched crops, and which rectangle of it is image and not padding."""

    def __init__(self, views: Views):
        (self.rows, self.cols), (self.height, self.width) = views.grid, views.token_grid  # type: ignore[misc]
        self.thumbnail_height, self.thumbnail_width = views.thumbnail_grid  # type: ignore[misc]
        self.device = views.scores.device
        # Kept where the caller has it: on the CPU these reductions cost no synchronisation.
        valid = views.valid if views.valid is not None else torch.ones(views.crops, views.tokens, dtype=torch.bool)
        stitched = valid.view(self.rows, self.cols, self.height, self.width).transpose(1, 2).flatten(2).flatten(0, 1)
        self.y = self._extent(stitched.any(1))
        self.x = self._extent(stitched.any(0))

    @staticmethod
    def _extent(line: Tensor) -> tuple[int, int]:
        where = line.nonzero().flatten()
        return (int(where[0]), int(where[-1]) + 1) if len(where) else (0, len(line))

    def overlaps(self) -> tuple[Tensor, Tensor]:
        """Per axis, how much of each thumbnail cell a crop's valid area covers: (rows, cells) and (cols, cells)."""
        rows = _overlap(self.rows, self.height, self.thumbnail_height, *self.y, self.device)
        cols = _overlap(self.cols, self.width, self.thumbnail_width, *self.x, self.device)
        return rows, cols

    def blocks(self) -> tuple[Tensor, Tensor]:
        """Per axis, the published code's equal blocks as 0/1 weights."""
        rows = _block(self.rows, self.thumbnail_height, self.device)
        return rows, _block(self.cols, self.thumbnail_width, self.device)

    def project(self, thumbnail_map: Tensor) -> Tensor:
        """The thumbnail's map (batch, height, width), resized to the valid area, as (batch, crops, tokens)."""
        size = (self.y[1] - self.y[0], self.x[1] - self.x[0])
        resized = F.interpolate(thumbnail_map[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        canvas = resized.new_zeros(resized.shape[0], self.rows * self.height, self.cols * self.width)
        canvas[:, self.y[0] : self.y[1], self.x[0] : self.x[1]] = resized
        tiles = canvas.unflatten(2, (self.cols, self.width)).unflatten(1, (self.rows, self.height))
        projected: Tensor = tiles.transpose(2, 3).flatten(3).flatten(1, 2)
        return projected


@lru_cache(maxsize=4096)
def _overlap(crops: int, size: int, cells: int, start: int, stop: int, device: torch.device) -> Tensor:
    # The thumbnail shows the valid area, from start to stop on the canvas of crops of `size` tokens, stretched over
    # `cells` cells.
    scale = cells / (stop - start)
    edges: Tensor = ((torch.arange(crops + 1) * size).clamp(start, stop) - start).double() * scale
    cell = torch.arange(cells)
    upper = torch.minimum(edges[1:, None], cell + 1.0)
    lower = torch.maximum(edges[:-1, None], cell.double())
    covered: Tensor = (upper - lower).clamp(min=0)
    return covered.to(device)  # waits, once: other streams will read it too


@lru_cache(maxsize=4096)
def _block(crops: int, cells: int, device: torch.device) -> Tensor:
    owner = (torch.arange(cells) // max(1, cells // crops)).clamp(max=crops - 1)
    member: Tensor = F.one_hot(owner, crops).T.double()
    return member.to(device)


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
