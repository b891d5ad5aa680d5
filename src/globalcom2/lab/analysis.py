"""What thumbnail and crops are worth: answers from some whole views only, as the paper analyses dynamic cropping."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from globalcom2.adapters.families import load_adapter
from globalcom2.core.methods import get_method
from globalcom2.core.newlines import occupied_lines
from globalcom2.core.selection import Keep
from globalcom2.core.views import Views
from globalcom2.errors import UnsupportedModelError
from globalcom2.hf.compression import Compression, compress
from globalcom2.hf.unknown_grid import GRID_UNKNOWN
from globalcom2.lab.dataset import Example
from globalcom2.lab.evals import answer_examples, batches
from globalcom2.lab.journal import Outcome
from globalcom2.lab.labels import FULL
from globalcom2.lab.summaries import summarize

Crops = Callable[[Tensor], Tensor]
"""Which crops stay, bool (batch, crops), from the importance of each, float (batch, crops)."""


def whole_views(thumbnail: bool, crops: Crops, views: Views, known_grid: bool) -> Keep:
    """Keep whole views, where a method keeps the best tokens of each; a newline stays if a token of its line does.

    Args:
        thumbnail: Whether the thumbnail stays.
        crops: Which crops stay.
        views: A batch of images of one layout.
        known_grid: Whether it is known how their crops lie.
    """
    if not known_grid:
        warnings.warn(GRID_UNKNOWN, stacklevel=2)
    ranking = get_method("globalcom2").load()(views, 0.5, allocation="softmax")
    kept = crops(ranking.ratios)[..., None] & views.valid_mask
    whole = torch.full_like(ranking.thumbnail, thumbnail, dtype=torch.bool)
    if views.lines is None:
        return Keep(whole, kept)
    return Keep(whole, kept, occupied_lines(kept, views.lines.to(kept.device), views.line_count))


def _block(model: Any, thumbnail: bool, crops: Crops) -> Compression:
    # The ratio is not used; 1 would bypass everything.
    return Compression(model, compress(model, 0.5).settings, partial(whole_views, thumbnail, crops))


def _every(importance: Tensor) -> Tensor:
    return torch.ones_like(importance, dtype=torch.bool)


def _none(importance: Tensor) -> Tensor:
    return torch.zeros_like(importance, dtype=torch.bool)


def _all_but(place: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def chosen(importance: Tensor) -> Tensor:
        if importance.shape[-1] == 0:  # an image without crops
            return _every(importance)
        return _every(importance).scatter(-1, place(importance)[..., None], False)

    return chosen


def _seeded(importance: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(importance.shape[-1], importance.shape[:-1], generator=generator)
    return drawn.to(importance.device)


CONDITIONS: dict[str, tuple[bool, Crops]] = {
    "thumbnail only": (True, _none),
    "crops only": (False, _every),
    "drop most important crop": (True, _all_but(lambda importance: importance.argmax(-1))),
    "drop least important crop": (True, _all_but(lambda importance: importance.argmin(-1))),
    "drop a random crop": (True, _all_but(_seeded)),
}
"""Importance is the ratio that the paper gives to a crop: the crop's share of the thumbnail's scores."""


def analyze_views(
    model: Any,
    processor: Any,
    examples: list[Example],
    *,
    batch_size: int = 16,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Answer all questions with all views, and in every condition.

    Source: the paper's analysis of dynamic cropping (https://arxiv.org/abs/2501.05179, section 3), for any set.

    Args:
        model: A supported model in eval mode.
        processor: Its processor.
        examples: The evaluation set.
        batch_size: Images per batch.
        progress: Called with the number of examples that were just finished.

    Returns:
        Rows as `evals.summarize` makes them, with `condition` instead of method and ratio; "all tokens" is first.

    Raises:
        UnsupportedModelError: A model whose images have no thumbnail.
    """
    if load_adapter(model.config.model_type).native:
        raise UnsupportedModelError(
            f"model must be of a family whose images have a thumbnail and crops, got {model.config.model_type}, whose images "
            "keep their resolution. `globalcom2 eval` compares methods there."
        )
    runs: list[tuple[dict[str, Any], list[Outcome]]] = []
    blocks: dict[str, Callable[[], AbstractContextManager[Any]]] = {FULL: nullcontext}
    for name, (thumbnail, crops) in CONDITIONS.items():
        blocks[name] = partial(_block, model, thumbnail, crops)
    for name, block in blocks.items():
        found: dict[int, Outcome] = {}
        for batch in batches(examples, batch_size):
            found |= {o.picture: o for o in answer_examples(model, processor, block, name, batch)}
            progress(len(batch))
        runs.append(({"condition": name}, [found[example.number] for example in examples]))
    return summarize(examples, runs)
