"""`compress`, `apply` and `remove`: a model whose image prompts are simply shorter. No algorithm, no family names."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from globalcom2 import patching
from globalcom2.adapters import Adapter, Layout, tap
from globalcom2.budget import check_ratio
from globalcom2.errors import InputError, UnsupportedModelError, unknown_name
from globalcom2.families import load_adapter
from globalcom2.memory import Memory, memory_of_call
from globalcom2.methods import check_options, get_method
from globalcom2.prompt import ALIGNED, ShortPrompt, shorten
from globalcom2.report import Clock, ImageReport, Report
from globalcom2.selection import NEWLINES, Keep, check_thumbnail_weight, select
from globalcom2.views import SCORE_TYPES, Views

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
    layer: int = -1,
    newlines: str | None = None,
    thumbnail_weight: float = 1.0,
    positions: str = "closed",
    thumbnail_order: str = "raster",
    **options: Any,
) -> Compression:
    """Compress the image tokens of every call of a model inside a `with` block.

    Args:
        model: A transformers model of a supported family (`list_models()`), also inside PEFT, torch.compile or DDP.
        retention_ratio: Fraction of the visual tokens that the language model reads, in (0, 1]. 1.0 is the unpatched
            model, bit for bit.
        method: A name from `list_methods()`.
        exact: True: how many tokens an image keeps follows from its size and the ratio alone. False: the published
            code's rounding.
        score: What saliency is: "logits" ([CLS] row before the softmax, mean over heads), "attention" (after it),
            "received" (attention that a token gets from all others) or "similarity" (minus the cosine of a token's
            features to the mean of its view). In towers without [CLS] the mean query stands in for it. Default: the
            family's, see the models table.
        layer: The tower's layer whose attention row is read; negative counts from the end.
        newlines: "counted", "all" or "none", see `select`.
        thumbnail_weight: The thumbnail's ratio over `retention_ratio`, see `select`.
        positions: "closed" numbers the short prompt without gaps; "original" keeps the numbers of the full prompt.
        thumbnail_order: "raster", or "score" for best first as in the published code.
        **options: Options of the method.

    Returns:
        A `Compression`; its `report` describes the last call.

    Raises:
        InputError, UnsupportedModelError: Before anything is patched.

    Calls with `inputs_embeds`, without images, or continuing a cache that was made uncompressed pass through
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
    check_thumbnail_weight(thumbnail_weight, exact)
    own = ("exact", "score", "layer", "newlines", "thumbnail_weight", "positions", "thumbnail_order")
    check_options(get_method(method), options, also=own)
    return Compression(model, settings)


def apply(model: ModelT, retention_ratio: float = 0.1, method: str = "globalcom2", **options: Any) -> ModelT:
    """The same as `compress`, without a block: until `remove(model)`. A second call replaces the first.

    Returns:
        The model; `globalcom2.compression.current(model).report` describes its last call.
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
    layer: int
    newlines: str | None
    thumbnail_weight: float
    positions: str
    thumbnail_order: str
    options: dict[str, Any]


class Compression:
    """Settings bound to a model; a context manager.

    `report` describes the last call; calls that continue a compressed cache leave the report of its first turn.
    """

    def __init__(self, model: torch.nn.Module, settings: Settings):
        self.target = patching.unwrap(model)
        self.adapter: Adapter = load_adapter(self.target.config.model_type)
        self.adapter.check(self.target.base_model)
        self.score = settings.score or self.adapter.default_score
        self.settings = settings
        self.attention = self._attention(self.target.base_model)
        self.report = Report(settings.retention_ratio, settings.method)

    def __enter__(self) -> Compression:
        patching.push(self.target, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        patching.pop(self.target, self)

    def shorten_call(self, model: Any, call: dict[str, Any], *, direct: bool = False) -> Short | None:
        """Replace a call's images by features of the kept tokens, and its prompt by a shorter one.

        Gradients flow through the features where the caller has them on.

        Args:
            model: The model that is being called: `target`, or a deep copy of it.
            call: Keyword arguments of `generate` or `forward`, not modified.
            direct: Whether they are those of `forward`, which numbers tokens without looking at the mask.

        Returns:
            The new keyword arguments with what is needed to undo the shortening, or None for a call that passes
            through: no images, embeddings instead of ids, or a ratio of 1.
        """
        self.report = Report(self.settings.retention_ratio, self.settings.method)
        ids = call.get("input_ids")
        if ids is None or call.get("pixel_values") is None or self.settings.retention_ratio == 1.0:
            return None
        base = model.base_model
        encode = self.adapter.encode_arguments(base, call)
        layouts = self.adapter.layouts(base, call)
        placeholder = ids == model.config.image_token_id
        rows = _rows_of_images(placeholder, layouts)
        mask = call.get("attention_mask")
        if mask is not None and mask.shape != ids.shape:
            raise InputError(
                f"attention_mask must have the shape of input_ids {tuple(ids.shape)}, got {tuple(mask.shape)}."
            )
        if isinstance(call.get("logits_to_keep"), Tensor):
            raise InputError(
                "logits_to_keep must be a number of last tokens, got a tensor: places move when tokens drop."
            )

        clock = Clock(base.device)
        attention = self._attention(base)
        read = tap.reader(self.score, self.adapter.cls_index)
        with clock.phase("tower"), tap.record(attention, read) as recording:
            encoded = self.adapter.encode(base, encode)
        if attention is not None and not recording.rows:
            raise UnsupportedModelError(
                f"layer {self.settings.layer} of the vision tower must run when the tower does, got nothing from its tap."
            )
        with clock.phase("selection"), torch.no_grad():
            scores = self._scores(base, encoded, recording.rows)
            shown = None if mask is None else mask[placeholder].bool().split([len(x.slots) for x in layouts])
            images = self._select(base, encoded, scores, layouts, rows, shown)
            keep = torch.cat([image.kept for image in images])
            prompt = shorten(ids, mask, placeholder, keep, _pad_token_id(model))
            order = _best_first if self.settings.thumbnail_order == "score" else _raster
            places = [order(image) for image in images]
        with clock.phase("projection"):
            features = self.adapter.kept(base, encoded, layouts, places)
        self.report = Report(self.settings.retention_ratio, self.settings.method, images, clock)

        new = {name: value for name, value in call.items() if name not in encode}
        given, original = new.pop("position_ids", None), self.settings.positions == "original"
        memory = memory_of_call(prompt, given, ids, mask, original)
        for name, fill in ALIGNED.items():
            if new.get(name) is not None:
                new[name] = prompt.gather(new[name], fill)
        new["input_ids"], new["attention_mask"] = prompt.input_ids, prompt.attention_mask
        if original or direct or given is not None:
            new["position_ids"] = memory.position_ids
        if original:  # without a mask and a cache, transformers takes gaps in positions for packed sequences
            new["attention_mask"] = memory.attention_mask
        image = self.adapter.output(features, encoded)
        image.globalcom2_memory = memory
        new["mm_encoder_outputs"] = {"image": image}
        return Short(new, prompt, memory, clock)

    def keep(self, views: Views, known_grid: bool = True) -> Keep:
        """What stays of a batch of images of one layout; where nobody knows their grid, crops get the same ratio."""
        settings = self.settings
        if not known_grid and settings.method == "globalcom2":
            warnings.warn(GRID_UNKNOWN, stacklevel=2)
            settings = replace(settings, method="uniform", options={})
        return select(
            views,
            settings.retention_ratio,
            settings.method,
            settings.exact,
            settings.newlines,
            settings.thumbnail_weight,
            **settings.options,
        )

    def _arranged(self, tensor: Tensor, layouts: list[Layout]) -> list[Tensor]:
        """Per image, with the thumbnail first."""
        parts = tensor.split([layout.views for layout in layouts])
        return [self.adapter.arrange(part, layout) for part, layout in zip(parts, layouts, strict=True)]

    def _attention(self, base: Any) -> torch.nn.Module | None:
        """What to tap; nothing where scores do not come from attention."""
        return None if self.score == "similarity" else self.adapter.attention(base, self.settings.layer)

    def _scores(self, base: Any, encoded: Any, rows: list[Tensor]) -> Tensor:
        """Token scores (views, tokens), in the tower's order of views."""
        if self.score != "similarity":
            return self.adapter.scores(base, torch.cat(rows))
        features = self.adapter.tower_features(base, encoded).float()
        return -torch.cosine_similarity(features, features.mean(1, keepdim=True), dim=-1)

    def _select(
        self,
        base: Any,
        encoded: Any,
        scores: Tensor,
        layouts: list[Layout],
        rows: list[int],
        shown: tuple[Tensor, ...] | None,
    ) -> list[ImageReport]:
        """Select for all images of one layout in one go; entries in prompt order.

        `shown` tells per image which of its places the caller's mask shows; a masked one is dropped.
        """
        settings = self.settings
        views = self._arranged(scores, layouts)
        features = None
        if get_method(settings.method).needs_features:
            features = self._arranged(self.adapter.tower_features(base, encoded), layouts)
        images: dict[int, ImageReport] = {}
        for layout in dict.fromkeys(layouts):
            members = [i for i, other in enumerate(layouts) if other is layout]
            stacked = torch.stack([views[i] for i in members])
            batch = Views(
                stacked[:, 1:],
                layout.valid,
                layout.grid,
                None if features is None else torch.stack([features[i] for i in members]),
                stacked[:, 0],
                layout.token_grid,
                layout.lines,
                self.score,
            )
            keep = self.keep(batch, layout.known_grid)
            flat = torch.cat(
                [keep.thumbnail, keep.crops.flatten(1), *([] if keep.newlines is None else [keep.newlines])], 1
            )
            slots = layout.slots.to(flat.device)
            kept = flat[:, slots.clamp(min=0)] & (slots >= 0)
            for n, i in enumerate(members):
                own = Keep(keep.thumbnail[n], keep.crops[n], None if keep.newlines is None else keep.newlines[n])
                seen = kept[n] if shown is None else kept[n] & shown[i].to(kept.device)
                images[i] = ImageReport(rows[i], layout, own, stacked[n, 0], seen)
        return [images[i] for i in range(len(layouts))]


@dataclass
class Short:
    """A shortened call."""

    call: dict[str, Any]
    prompt: ShortPrompt
    memory: Memory
    clock: Clock


def _raster(image: ImageReport) -> Tensor:
    """Kept places of one image, in the order of the full prompt."""
    return image.kept.nonzero().flatten()


def _best_first(image: ImageReport) -> Tensor:
    """Kept places of one image, those of the thumbnail ordered by score as the published code does."""
    slots, tokens = image.layout.slots.to(image.kept.device), image.layout.tokens
    place = torch.arange(len(slots), device=slots.device)
    in_thumbnail = (slots >= 0) & (slots < tokens)
    thumbnail = place[in_thumbnail]
    best = thumbnail[image.thumbnail_scores[slots[thumbnail]].argsort(descending=True, stable=True)]
    # The thumbnail's stretch of the run stays where it is and is filled best first.
    order = place.masked_scatter(in_thumbnail, best)
    return order[image.kept[order]]


def _rows_of_images(placeholder: Tensor, layouts: list[Layout]) -> list[int]:
    """Which prompt of the batch each image belongs to; raises if prompts and images do not fit."""
    counts = placeholder.sum(1).tolist()
    rows, row, left = [], 0, counts[0] if counts else 0
    expected = [len(layout.slots) for layout in layouts]
    for size in expected:
        while left == 0 and row + 1 < len(counts):
            row += 1
            left = counts[row]
        if left < size:
            break
        left -= size
        rows.append(row)
    if len(rows) != len(layouts) or left or any(counts[row + 1 :]):
        raise InputError(
            f"input_ids must hold {expected} image placeholders for the {len(layouts)} images of this call, got {counts} "
            "per prompt. Build prompts and images with one call of the processor, with one image tag per image."
        )
    return rows


def _pad_token_id(model: Any) -> int:
    pad = model.generation_config.pad_token_id
    return 0 if pad is None else int(pad)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise unknown_name(name, value, allowed)
    return value
