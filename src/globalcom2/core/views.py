"""What a selector sees of an image: scores, which tokens are real, and how the crops lie. Pure tensors, no model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from globalcom2.core.layout import Layout, count_lines
from globalcom2.core.scores import SCORE_TYPES
from globalcom2.errors import InputError


@dataclass(frozen=True, eq=False)
class Views:
    """One image, or a batch of images of one shape, as views of the vision tower.

    Shapes may carry one leading batch axis (`batch`), the same on every float tensor; `valid`, `grid` and `lines` are
    shared by the whole batch.

    Args:
        scores: Each crop's own saliency, float (crops, tokens), row-major in the crop, crops row-major in the grid.
        valid: bool (crops, tokens), tokens that show image and not padding. Default: all.
        grid: (rows, cols) of the crops. Default: one row.
        features: float (1 + crops, tokens, dim), thumbnail first, for selectors that look at similarity.
        thumbnail_scores: The thumbnail's saliency, float (tokens,), row-major. None: the image has no thumbnail.
        token_grid: (height, width) of the tokens of a view. Default: square.
        lines: int (crops, tokens), for packings that end every line of the stitched crops with a newline token: the
            line that a token stands on, -1 on padding. None: the packing has no newlines.
        score_type: What the scores are: "logits" (pre-softmax, may be negative), "attention" (softmaxed, one view sums
            to at most one), "mean_query" (logits of the mean query), "received" (attention from all tokens, sums to one
            too) or "similarity" (minus the cosine to the view's mean). Selectors take from it how they share a
            budget.
        thumbnail_grid: (height, width) of the thumbnail's tokens, where it has others than the crops. Default:
            `token_grid`.
        guidance: float (crops, tokens), for views without a thumbnail to keep: what a commander thinks of every crop
            token. Of a video, where crops are frames: how little the token resembles the pooled clip.
        guide_scores: float (guide tokens,), row-major: saliency of a small view of the image that commands in the thumbnail's
            place and is not kept. The image has no thumbnail then, and its crops are windows of one view.
        guide_grid: (height, width) of the guide's tokens.
        layer_scores: float (layers, 1 + crops, tokens), thumbnail first: scores read in further layers of the tower, in
            the order of `Method.layers`.
        keys: float (1 + crops, tokens, dim), thumbnail first: the attention keys of the layer that `scores` were read
            in, mean over heads.
        cls: float (1 + crops, dim), thumbnail first: what the tower's last layer says of [CLS].
        crop_features: float (crops, tokens, dim): features of the crops alone, where the thumbnail has a token grid of its
            own. Default: those in `features`.

    Raises:
        InputError: Shapes that do not fit together.
    """

    scores: Tensor
    valid: Tensor | None = None
    grid: tuple[int, int] | None = None
    features: Tensor | None = None
    thumbnail_scores: Tensor | None = None
    token_grid: tuple[int, int] | None = None
    lines: Tensor | None = None
    score_type: str = "logits"
    thumbnail_grid: tuple[int, int] | None = None
    guidance: Tensor | None = None
    layer_scores: Tensor | None = None
    keys: Tensor | None = None
    cls: Tensor | None = None
    crop_features: Tensor | None = None
    guide_scores: Tensor | None = None
    guide_grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        scores = self.scores
        if not isinstance(scores, Tensor) or not scores.is_floating_point() or scores.ndim not in (2, 3):
            raise InputError(f"scores must be a float tensor (crops, tokens), got {describe(scores)}.")
        self._fill_grids()
        batch, (crops, tokens) = tuple(scores.shape[:-2]), tuple(scores.shape[-2:])
        if self.thumbnail_scores is None and crops == 0:
            raise InputError(
                "thumbnail_scores must be given for an image without crops, got None: there is no view to keep."
            )
        cure = "A thumbnail with tokens of its own needs thumbnail_grid=(height, width)."
        _check("thumbnail_scores", self.thumbnail_scores, (*batch, self.thumbnail_tokens), "float", cure)
        _check("guidance", self.guidance, (*batch, crops, tokens), "float")
        self._check_commander()
        _check("valid", self.valid, (crops, tokens), "bool")
        _check("lines", self.lines, (crops, tokens), "int")
        self._check_further()
        if self.score_type not in SCORE_TYPES:
            raise InputError(f"score_type must be one of {', '.join(SCORE_TYPES)}, got {self.score_type!r}.")
        self._check_lines()

    def _check_commander(self) -> None:
        """One at most commands: the thumbnail, guidance, or a guide."""
        given = [n for n in ("thumbnail_scores", "guidance", "guide_scores") if getattr(self, n) is not None]
        if len(given) > 1:
            raise InputError(f"{given[1]} must be None where {given[0]} guide, got both. Give one of them.")
        if (self.guide_scores is None) != (self.guide_grid is None):
            raise InputError(
                f"guide_scores and guide_grid must be given together, got {describe(self.guide_scores)} and "
                f"{self.guide_grid!r}."
            )
        if self.guide_grid is not None:
            if not _is_size(self.guide_grid) or 0 in self.guide_grid:
                raise InputError(f"guide_grid must be (height, width) in tokens, from 1 on, got {self.guide_grid!r}.")
            object.__setattr__(self, "guide_grid", (int(self.guide_grid[0]), int(self.guide_grid[1])))
            tokens = self.guide_grid[0] * self.guide_grid[1]
            _check("guide_scores", self.guide_scores, (*self.scores.shape[:-2], tokens), "float")

    def _fill_grids(self) -> None:
        """Replace the grids by pairs of integers, defaults filled in."""
        crops, tokens = self.scores.shape[-2:]
        grid = self.grid if self.grid is not None else (min(crops, 1), crops)
        if not _is_size(grid) or grid[0] * grid[1] != crops:
            raise InputError(f"grid must be (rows, cols) with rows * cols == {crops} crops, got {self.grid!r}.")
        side = math.isqrt(tokens)
        token_grid = self.token_grid if self.token_grid is not None else (side, side)
        if not _is_size(token_grid) or token_grid[0] * token_grid[1] != tokens:
            raise InputError(
                f"token_grid must be (height, width) with height * width == {tokens} tokens per view, got "
                f"{self.token_grid!r}. A view that is not square needs it."
            )
        thumbnail_grid = self.thumbnail_grid if self.thumbnail_grid is not None else token_grid
        if not _is_size(thumbnail_grid):
            raise InputError(f"thumbnail_grid must be (height, width) in tokens, got {self.thumbnail_grid!r}.")
        for name, size in (("grid", grid), ("token_grid", token_grid), ("thumbnail_grid", thumbnail_grid)):
            object.__setattr__(self, name, (int(size[0]), int(size[1])))

    def _check_further(self) -> None:
        """What selectors may ask for besides scores, with the thumbnail among the views."""
        batch, (crops, tokens) = tuple(self.scores.shape[:-2]), tuple(self.scores.shape[-2:])
        cure = "Thumbnail first."
        for name in ("features", "keys", "layer_scores"):
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if self.thumbnail_grid != self.token_grid:
                raise InputError(
                    f"{name} must be None where the thumbnail has a token grid of its own ({self.thumbnail_grid} and "
                    f"{self.token_grid} for crops), got {describe(tensor)}. Use a method that reads scores alone."
                )
            if name == "layer_scores":
                layers = tensor.shape[-3] if isinstance(tensor, Tensor) and tensor.ndim > 2 else 0
                _check(name, tensor, (*batch, layers, 1 + crops, tokens), "float", cure)
            else:
                _check(name, tensor, (*batch, 1 + crops, tokens, _last(tensor)), "float", cure)
        _check("cls", self.cls, (*batch, 1 + crops, _last(self.cls)), "float", cure)
        if self.crop_features is None and self.features is not None:
            object.__setattr__(self, "crop_features", self.features[..., 1:, :, :])
        _check("crop_features", self.crop_features, (*batch, crops, tokens, _last(self.crop_features)), "float")

    def _check_lines(self) -> None:
        if self.lines is not None and self.lines.numel():
            on_line = self.lines >= 0
            valid = torch.ones_like(on_line) if self.valid is None else self.valid.to(on_line.device)
            if not torch.equal(on_line, valid) or not self.lines[on_line].bincount().all():
                raise InputError("lines must be -1 on padding and number the other tokens' lines from 0 without gaps.")

    @classmethod
    def of(
        cls,
        layout: Layout,
        thumbnail: Tensor,
        crops: Tensor,
        score_type: str,
        *,
        features: Tensor | None = None,
        guidance: Tensor | None = None,
        layer_scores: Tensor | None = None,
        keys: Tensor | None = None,
        cls_features: Tensor | None = None,
        crop_features: Tensor | None = None,
    ) -> Views:
        """Views of images of one layout.

        Args:
            layout: What the images share.
            thumbnail: Scores (batch, tokens) of the thumbnail or of the guide, or of what stands in their place; not used
                where the layout has neither.
            crops: Scores (batch, crops, tokens).
            score_type: What the scores are.
            features: See `Views`.
            guidance: See `Views`.
            layer_scores: See `Views`.
            keys: See `Views`.
            cls_features: `cls` of `Views`.
            crop_features: See `Views`.
        """
        return cls(
            scores=crops,
            valid=layout.valid,
            grid=layout.grid,
            features=features,
            thumbnail_scores=thumbnail if layout.thumbnail else None,
            token_grid=layout.token_grid,
            lines=layout.lines,
            score_type=score_type,
            thumbnail_grid=layout.thumbnail_grid,
            guidance=guidance,
            layer_scores=layer_scores,
            keys=keys,
            cls=cls_features,
            crop_features=crop_features,
            guide_scores=None if layout.guide_grid is None else thumbnail,
            guide_grid=layout.guide_grid,
        )

    @property
    def commander(self) -> tuple[Tensor, tuple[int, int]] | None:
        """Scores (..., tokens) and (height, width) of the view that commands: thumbnail or guide. None without one."""
        if self.guide_scores is not None:
            return self.guide_scores, self.guide_grid  # type: ignore[return-value]
        return None if self.thumbnail_scores is None else (self.thumbnail_scores, self.thumbnail_grid)  # type: ignore[return-value]

    @property
    def crops(self) -> int:
        """Number of crops."""
        return self.scores.shape[-2]

    @property
    def tokens(self) -> int:
        """Tokens per crop."""
        return self.scores.shape[-1]

    @property
    def thumbnail_tokens(self) -> int:
        """Tokens of the thumbnail, if the image has one."""
        height, width = self.thumbnail_grid  # type: ignore[misc]
        return height * width

    @cached_property
    def valid_mask(self) -> Tensor:
        """`valid` with its default filled in, bool (crops, tokens), on the scores' device."""
        if self.valid is None:
            return torch.ones(self.crops, self.tokens, dtype=torch.bool, device=self.scores.device)
        return self.valid.to(self.scores.device, non_blocking=True)

    @cached_property
    def valid_count(self) -> int:
        """Valid tokens of all crops together."""
        return self.crops * self.tokens if self.valid is None else int(self.valid.sum())

    @cached_property
    def line_count(self) -> int:
        """Newlines of the packed crops."""
        return count_lines(self.lines)


def _is_size(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(n, int) and n >= 0 for n in value)


def _check(name: str, tensor: object, shape: tuple[int, ...], kind: str, more: str = "") -> None:
    if tensor is None:
        return
    right = isinstance(tensor, Tensor) and tuple(tensor.shape) == shape
    if right and isinstance(tensor, Tensor):
        is_float, is_bool = tensor.is_floating_point(), tensor.dtype == torch.bool
        right = {"float": is_float, "bool": is_bool, "int": not is_float and not is_bool}[kind]
    if not right:
        article = "an" if kind == "int" else "a"
        got = describe(tensor)
        raise InputError(f"{name} must be {article} {kind} tensor of shape {shape}, got {got}. {more}".rstrip())


def _last(tensor: object) -> int:
    return tensor.shape[-1] if isinstance(tensor, Tensor) and tensor.ndim else 0


def describe(value: object) -> str:
    """A value in an error message: a tensor's type and shape, or the beginning of what else it is."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"{type(value).__name__} {' '.join(repr(value).split()):.60}"
