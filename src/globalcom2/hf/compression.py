"""`compress`, `apply` and `remove`: a model whose visual prompts are simply shorter. No algorithm, no family names."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from globalcom2.adapters.base import Adapter
from globalcom2.adapters.families import load_adapter
from globalcom2.core.budget import check_ratio
from globalcom2.core.groups import Group, on_host
from globalcom2.core.methods import check_options, get_method
from globalcom2.core.scores import SCORE_TYPES
from globalcom2.core.selection import NEWLINES, Keep, check_thumbnail_weight, select
from globalcom2.core.views import Views
from globalcom2.errors import InputError, unknown_name
from globalcom2.hf import patching
from globalcom2.hf.cache import Memory, memory_of_call
from globalcom2.hf.prompt import ALIGNED, ShortPrompt, shorten
from globalcom2.hf.report import Clock, Report, best_first, raster
from globalcom2.hf.saliency import Encoded, Saliency
from globalcom2.hf.visuals import entries_of, in_prompt_order, visuals_of_call, wanted_tokens

GRID_UNKNOWN = (
    "globalcom2: an image is too uniform or too regular to tell how its crops lie, and the call does not say; its crops "
    "get equal budgets."
)
POSITIONS = ("closed", "original")
THUMBNAIL_ORDERS = ("raster", "score")

ModelT = TypeVar("ModelT", bound=torch.nn.Module)


def compress(
    model: torch.nn.Module,
    retention_ratio: float = 0.1,
    method: str = "globalcom2",
    *,
    exact: bool = True,
    score: str | None = None,
    layer: int | None = None,
    newlines: str | None = None,
    thumbnail_weight: float = 1.0,
    positions: str = "closed",
    thumbnail_order: str = "raster",
    **options: Any,
) -> Compression:
    """Compress the image and video tokens of every call of a model inside a `with` block.

    Args:
        model: A transformers model of a supported family (`list_models()`), also inside PEFT, torch.compile or DDP.
        retention_ratio: Fraction of the visual tokens that the language model reads, in (0, 1]. 1.0 is the unpatched
            model, bit for bit.
        method: A name from `list_methods()`.
        exact: True: how many tokens an image keeps follows from its size and the ratio alone. False: the published
            code's rounding.
        score: What saliency is: "logits" ([CLS] row before the softmax, mean over heads), "attention" (after it),
            "mean_query" (logits of the mean over all tokens' queries), "received" (attention that a token gets from all
            others) or "similarity" (minus the cosine of a token's features to the mean of its view). In towers without
            [CLS] the mean query stands in for it. Default: the family's, see the models table.
        layer: The tower's layer whose attention row is read; negative counts from the end, -1 as in the published code.
            Default: the deepest whose output the language model reads by `model.config`, in LLaVA-NeXT the second-last; -1
            with `exact=False`.
        newlines: "counted", "all" or "none", see `select`.
        thumbnail_weight: The thumbnail's ratio over `retention_ratio`, see `select`.
        positions: "closed" numbers the short prompt without gaps; "original" keeps the numbers of the full prompt.
        thumbnail_order: "raster", or "score" for best first as in the published code.
        **options: Options of the method.

    Returns:
        A `Compression`; its `report` describes the last call.

    Raises:
        InputError, UnsupportedModelError: Before anything is patched.

    Calls with `inputs_embeds`, without images and videos, or continuing a cache that was made uncompressed pass through
    unchanged. A cache that was filled in a block must be continued in one. Settings belong to the model, not to a
    thread: in nested blocks the inner one wins, for all threads. A deep copy keeps what was applied and follows the
    blocks that it was made in until they end.
    """
    settings = Settings(
        check_ratio(retention_ratio),
        method,
        exact,
        score if score is None else _one_of("score", score, SCORE_TYPES),
        layer,
        newlines if newlines is None else _one_of("newlines", newlines, NEWLINES),
        thumbnail_weight,
        _one_of("positions", positions, POSITIONS),
        _one_of("thumbnail_order", thumbnail_order, THUMBNAIL_ORDERS),
        options,
    )
    if not isinstance(exact, bool):
        raise InputError(f"exact must be True or False, got {exact!r}.")
    check_thumbnail_weight(thumbnail_weight, exact)
    own = ("exact", "score", "layer", "newlines", "thumbnail_weight", "positions", "thumbnail_order")
    check_options(get_method(method), options, also=own)
    return Compression(model, settings)


def apply(model: ModelT, retention_ratio: float = 0.1, method: str = "globalcom2", **options: Any) -> ModelT:
    """The same as `compress`, without a block: until `remove(model)`. A second call replaces the first.

    Returns:
        The model; `globalcom2.hf.compression.current(model).report` describes its last call.
    """
    compression = compress(model, retention_ratio, method, **options)
    remove(model)
    patching.push(compression.target, compression, permanent=True)
    return model


def remove(model: ModelT) -> ModelT:
    """Undo `apply`. Does nothing on a model to which nothing was applied; blocks stay as they are."""
    patching.pop_permanent(patching.unwrap(model))
    return model


def current(model: torch.nn.Module) -> Compression | None:
    """The compression that calls of `model` go through now, or None."""
    return patching.active(patching.unwrap(model))


@dataclass(frozen=True)
class Settings:
    """Checked arguments of `compress`."""

    retention_ratio: float
    method: str
    exact: bool
    score: str | None
    layer: int | None
    newlines: str | None
    thumbnail_weight: float
    positions: str
    thumbnail_order: str
    options: dict[str, Any]


Choose = Callable[[Views, bool], Keep]


def choose_tokens(settings: Settings, views: Views, known_grid: bool) -> Keep:
    """What stays of a batch of images of one layout; without a known grid, crops get the same ratio, with a warning."""
    if not known_grid and get_method(settings.method).needs_grid:
        warnings.warn(GRID_UNKNOWN, stacklevel=2)
        settings = replace(settings, method="uniform", options={})
    return select(
        views,
        settings.retention_ratio,
        settings.method,
        settings.exact,
        settings.newlines,
        settings.thumbnail_weight,
        check=False,
        **settings.options,
    )


class Compression:
    """Settings bound to a model; a context manager.

    `report` describes the last call; calls that continue a compressed cache leave the report of its first turn.

    Args:
        model: See `compress`.
        settings: Checked arguments of `compress`.
        choose: What decides the masks instead of the method, for studies: a function of a batch of views of one layout
            and of whether their grid is known.
    """

    def __init__(self, model: torch.nn.Module, settings: Settings, choose: Choose | None = None):
        self.target = patching.unwrap(model)
        self.adapter: Adapter = load_adapter(self.target.config.model_type)
        self.adapter.check(self.target.base_model)
        self.videos = self.adapter.videos()
        self.settings = settings
        layer = -1 if settings.layer is None and not settings.exact else settings.layer  # the published code's
        self.saliency = Saliency(self.target.base_model, self.adapter, settings.score, layer)
        self.attention = self.saliency.attention(self.target.base_model)
        self.report = Report(settings.retention_ratio, settings.method)
        self.choose = choose or partial(choose_tokens, settings)
        if choose is None:  # on four tiny crops: an option out of range is told now, not in the middle of a call
            features = torch.zeros(5, 4, 1)
            scores = features[..., 0]
            choose_tokens(
                settings, Views(scores[1:], None, (2, 2), features, scores[0], score_type=self.saliency.score), True
            )

    def __enter__(self) -> Compression:
        patching.push(self.target, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        patching.pop(self.target, self)

    def shorten_call(self, model: Any, call: dict[str, Any], *, direct: bool = False) -> Short | None:
        """Replace a call's images and videos by features of the kept tokens, and its prompt by a shorter one.

        Gradients flow through the features where the caller has them on.

        Args:
            model: The model that is being called: `target`, or a deep copy of it.
            call: Keyword arguments of `generate` or `forward`, not modified.
            direct: Whether they are those of `forward`, which numbers tokens without looking at the mask.

        Returns:
            The new keyword arguments with what is needed to undo the shortening, or None for a call that passes
            through: nothing to compress, embeddings instead of ids, or a ratio of 1.
        """
        self.report = Report(self.settings.retention_ratio, self.settings.method)
        ids = call.get("input_ids")
        if ids is None or self.settings.retention_ratio == 1.0:
            return None
        mask, given = call.get("attention_mask"), call.get("position_ids")
        # Now, before the tower has work: what the prompt becomes is found out on the host.
        own_ids: Tensor = ids.cpu()
        own_mask, own_given = (None if x is None else x.cpu() for x in (mask, given))
        adapters = [self.adapter, *([] if self.videos is None else [self.videos])]
        found = visuals_of_call(model, call, own_ids, adapters)
        if not found:
            return None
        base = model.base_model
        if mask is not None and mask.shape != ids.shape:
            raise InputError(
                f"attention_mask must have the shape of input_ids {tuple(ids.shape)}, got {tuple(mask.shape)}."
            )
        if isinstance(call.get("logits_to_keep"), Tensor):
            raise InputError(
                "logits_to_keep must be a number of last tokens, got a tensor: places move when tokens drop."
            )

        clock = Clock(base.device)
        with clock.phase("tower"):
            encoded = [self.saliency.encode(base, visuals) for visuals in found]
        with clock.phase("selection"), torch.no_grad():
            groups = [self._select(base, own) for own in encoded]
            on_host([group for own in groups for group in own])
            entries = [entries_of(own, visuals, own_mask) for own, visuals in zip(groups, found, strict=True)]
            kept = [torch.cat([entry.kept for entry in own]) for own in entries]
            wanted = wanted_tokens(own_ids, found, kept)
            prompt = shorten(own_ids, own_mask, wanted, _pad_token_id(model))
            order = best_first if self.settings.thumbnail_order == "score" else raster
            places = [[order(entry) for entry in own] for own in entries]
        with clock.phase("projection"):
            outputs = {}
            for visuals, tower, own in zip(found, encoded, places, strict=True):
                features = visuals.adapter.kept(base, tower.output, visuals.layouts, own)
                outputs[visuals.adapter.modality] = visuals.adapter.output(features, tower.output)
        settings = self.settings
        self.report = Report(settings.retention_ratio, settings.method, in_prompt_order(found, entries), clock)

        read = {name for visuals in found for name in visuals.arguments}
        new = {name: value for name, value in call.items() if name not in read}
        new.pop("position_ids", None)
        original = self.settings.positions == "original"
        memory = memory_of_call(prompt, own_given, own_ids, own_mask, original).to(ids.device)
        prompt = memory.prompt
        for name, fill in ALIGNED.items():
            if new.get(name) is not None:
                new[name] = prompt.gather(new[name], fill)
        new["input_ids"], new["attention_mask"] = prompt.input_ids, prompt.attention_mask
        if original or direct or given is not None:
            new["position_ids"] = memory.position_ids
        if original:  # without a mask and a cache, transformers takes gaps in positions for packed sequences
            new["attention_mask"] = memory.attention_mask
        for output in outputs.values():
            output.globalcom2_memory = memory
        new["mm_encoder_outputs"] = outputs
        return Short(new, prompt, memory, clock)

    def _select(self, base: Any, encoded: Encoded) -> list[Group]:
        """Select for all images, or videos, of one layout in one go."""
        method, layouts = self.settings.method, encoded.visuals.layouts
        with_features = get_method(method).needs_features
        if with_features and any(layout.thumbnail_grid != layout.token_grid for layout in layouts):
            raise InputError(
                "method must be one that reads scores alone, since this model's thumbnail has a token grid of its own, got "
                f"{method!r}, which compares features."
            )
        return [
            Group(layout, members, views, thumbnails, self.choose(views, layout.known_grid))
            for layout, members, views, thumbnails in self.saliency.views(base, encoded, with_features)
        ]


@dataclass
class Short:
    """A shortened call."""

    call: dict[str, Any]
    prompt: ShortPrompt
    memory: Memory
    clock: Clock


def _pad_token_id(model: Any) -> int:
    pad = model.generation_config.pad_token_id
    return 0 if pad is None else int(pad)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise unknown_name(name, value, allowed)
    return value
