"""What a selector sees of an image: scores, which tokens are real, and how the crops lie. Pure tensors, no model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from globalcom2.errors import InputError

SCORE_TYPES = ("logits", "attention", "similarity")


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
            to at most one) or "similarity" (minus the cosine to the view's mean). Selectors take their temperature
            from it.

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

    def __post_init__(self) -> None:
        scores = self.scores
        if not isinstance(scores, Tensor) or not scores.is_floating_point() or scores.ndim not in (2, 3):
            raise InputError(f"scores must be a float tensor (crops, tokens), got {_describe(scores)}.")
        crops, tokens = scores.shape[-2:]
        grid = self.grid if self.grid is not None else (min(crops, 1), crops)
        if len(grid) != 2 or grid[0] * grid[1] != crops:
            raise InputError(f"grid must be (rows, cols) with rows * cols == {crops} crops, got {self.grid!r}.")
        object.__setattr__(self, "grid", (int(grid[0]), int(grid[1])))
        if self.token_grid is None:
            side = math.isqrt(tokens)
            if side * side != tokens:
                raise InputError(
                    f"token_grid must be given when a view is not square, got {tokens} tokens and no token_grid."
                )
            object.__setattr__(self, "token_grid", (side, side))
        elif math.prod(self.token_grid) != tokens:
            raise InputError(f"token_grid must multiply to {tokens} tokens per view, got {self.token_grid!r}.")
        thumbnail = self.thumbnail_scores
        if thumbnail is not None and (
            thumbnail.shape != (*scores.shape[:-2], tokens) or not thumbnail.is_floating_point()
        ):
            expected = (*scores.shape[:-2], tokens)
            raise InputError(
                f"thumbnail_scores must be a float tensor of shape {expected}, got {_describe(thumbnail)}."
            )
        if thumbnail is None and crops == 0:
            raise InputError(
                "thumbnail_scores must be given for an image without crops, got None: there is no view to keep."
            )
        if self.valid is not None and (self.valid.shape != (crops, tokens) or self.valid.dtype != torch.bool):
            raise InputError(f"valid must be a bool tensor of shape {(crops, tokens)}, got {_describe(self.valid)}.")
        if self.lines is not None and self.lines.shape != (crops, tokens):
            raise InputError(f"lines must have shape {(crops, tokens)}, got {_describe(self.lines)}.")
        if self.features is not None and self.features.shape[:-1] != (*scores.shape[:-2], 1 + crops, tokens):
            expected = (*scores.shape[:-2], 1 + crops, tokens, "dim")
            raise InputError(f"features must have shape {expected}, thumbnail first, got {_describe(self.features)}.")
        if self.score_type not in SCORE_TYPES:
            raise InputError(f"score_type must be one of {', '.join(SCORE_TYPES)}, got {self.score_type!r}.")

    @property
    def crops(self) -> int:
        """Number of crops."""
        return self.scores.shape[-2]

    @property
    def tokens(self) -> int:
        """Tokens per view."""
        return self.scores.shape[-1]

    @cached_property
    def valid_mask(self) -> Tensor:
        """`valid` with its default filled in, bool (crops, tokens), on the scores' device."""
        if self.valid is None:
            return torch.ones(self.crops, self.tokens, dtype=torch.bool, device=self.scores.device)
        return self.valid.to(self.scores.device)

    @cached_property
    def valid_count(self) -> int:
        """Valid tokens of all crops together."""
        return self.crops * self.tokens if self.valid is None else int(self.valid.sum())

    @cached_property
    def line_count(self) -> int:
        """Newlines of the packed crops."""
        return 0 if self.lines is None or self.lines.numel() == 0 else int(self.lines.max()) + 1


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return repr(value)
