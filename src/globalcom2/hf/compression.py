"""`compress`, `apply` and `remove`: a model whose visual prompts are simply shorter. No algorithm, no family names."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from globalcom2.adapters.base import Adapter
from globalcom2.adapters.families import load_adapter
from globalcom2.core.method import Method
from globalcom2.core.selection import Keep, Selector
from globalcom2.core.views import Views
from globalcom2.errors import GlobalCom2Error, InputError
from globalcom2.hf import patching
from globalcom2.hf.active import Short, active
from globalcom2.hf.budgets import Batch, chosen_groups, ratios_of_content, ratios_of_sizes, refuse_static
from globalcom2.hf.config import CompressionConfig
from globalcom2.hf.inside_calls import Leaving, check_call, inside_model
from globalcom2.hf.native import check_settings, with_axes
from globalcom2.hf.report import Clock, ImageReport, Report
from globalcom2.hf.saliency import Saliency
from globalcom2.hf.shortening import Rewriting, choose, project, read_prompt, rewrite
from globalcom2.hf.unknown_grid import choose_tokens
from globalcom2.hf.unshortened import unshortened_entries
from globalcom2.hf.visuals import in_prompt_order, visuals_of_call

NEVER_ENTERED = (
    "globalcom2: this compression was never entered, so no call went through it and its report is empty. Write `with "
    "compress(...) as compression:`, or call apply()."
)

ModelT = TypeVar("ModelT", bound=torch.nn.Module)


def compress(
    model: torch.nn.Module,
    retention_ratio: float | str | None = None,
    method: str | Method | Selector | None = None,
    *,
    preset: str | None = None,
    config: CompressionConfig | None = None,
    exact: bool | None = None,
    score: str | None = None,
    layer: int | None = None,
    newlines: str | None = None,
    thumbnail_weight: float | None = None,
    positions: str | None = None,
    guide: str | None = None,
    thumbnail_order: str | None = None,
    logits: str | None = None,
    inside: str | None = None,
    inside_layer: int | None = None,
    inside_share: float | None = None,
    max_visual_tokens: int | None = None,
    max_visual_tokens_per_call: int | None = None,
    auto_floor: float | None = None,
    auto_ceiling: float | None = None,
    **options: Any,
) -> Compression:
    """Compress the image and video tokens of every call of a model inside a `with` block.

    Args:
        model: A transformers model of a supported family (`list_models()`), also inside PEFT, torch.compile or DDP.
        retention_ratio: Fraction of the visual tokens that the language model reads, in (0, 1]. 1.0 is the unpatched
            model, bit for bit. "auto": each image's own, between `auto_floor` and `auto_ceiling`, the higher the more evenly
            its crops' scores are spread; totals then follow the content. Default: 0.1, or 1.0 with a limit in tokens.
        method: A name from `list_methods()`, also with options as on the command line ("globalcom2:alpha=0.5,layer=-1"); a
            `Method`; or a function(views, retention_ratio, **options) that returns a `Ranking` and reads scores alone.
            Default: "globalcom2".
        preset: Settings of `globalcom2` by name: "default"; "paper", the paper's choices (layer=-1, allocation="softmax",
            alpha=0.5, newlines="counted"); or "published", these with exact=False, the published newlines and
            thumbnail_order="score". What else is passed wins.
        config: A `CompressionConfig` to start from, instead of a preset. What else is passed wins; another method drops
            the options of the config's.
        exact: True: how many tokens an image keeps follows from its size and the ratio alone. False: the published
            code's rounding. Default: True.
        score: What saliency is: "logits" ([CLS] row before the softmax, mean over heads), "attention" (after it),
            "mean_query" (logits of the mean over all tokens' queries), "received" (attention that a token gets from all
            others) or "similarity" (minus the cosine of a token's features to the mean of its view). In towers without
            [CLS] the mean query stands in for it. Default: what the method is defined on, if it says so, else the family's,
            see the models table.
        layer: The tower's layer whose attention row is read; negative counts from the end, -1 as in the published code.
            Default: the deepest whose output the language model reads by `model.config`, in LLaVA-NeXT the second-last; -1
            with `exact=False`.
        newlines: "counted", "from_2", "from_3" ..., "all" or "none", see `select`. Default: "from_3"; "all" with
            `exact=False`.
        thumbnail_weight: The thumbnail's ratio over `retention_ratio`, see `select`. Default: 1.0.
        positions: "closed" numbers the short prompt without gaps; "original" keeps the numbers of the full prompt, which
            matters to who asks for places, boxes or points. Default: "original" in families that number visual tokens by time,
            row and column (M-RoPE) and take nothing else; "closed" in all others.
        guide: What commands in families whose images keep their resolution and have no thumbnail. "pooled": a small map of
            the image's own scores. "thumbnail": the image at a third of its size, read in the same pass of the tower, which
            then reads a ninth more. Default: "pooled".
        thumbnail_order: "raster", or "score" for best first as in the published code. Default: "raster".
        logits: Of a direct call. "short": logits (batch, short, vocabulary) of the shortened prompt. "full": logits at the
            caller's own places, (batch, long, vocabulary), to be paired with the caller's own labels. A dropped place
            has the logits of the last kept token before it, which predict what follows the dropped ones; a place before
            every kept token has zeros. With `logits_to_keep=n`, logits are those of the caller's last n places in both.
            Default: "short".
        inside: "fastv" or "pyramiddrop": visual tokens leave inside the language model, too, where the prompt's last
            token attends to them least. `retention_ratio` stays what the prompt keeps; with 1.0, tokens leave inside
            alone. "fastv" drops once, after layer `inside_layer`; "pyramiddrop" three times, after each quarter of the
            layers. Default: None, none leave.
        inside_layer: FastV's layer, counted from 1; its attention decides. Default: 2.
        inside_share: Of a prompt's visual tokens that are left, the share that stays in each drop, in (0, 1]. Default: 0.5.
        max_visual_tokens: The most visual tokens of an image, newlines that count included: one that has more keeps
            exactly so many, one that has fewer stays whole. A video counts as an image. With a `retention_ratio` below 1,
            too, an image keeps what the tighter of both allows. Needs `exact`, and newlines that are not "all".
        max_visual_tokens_per_call: The same for all images of a call together. Each keeps its part in proportion to what
            it would keep without this limit, and one token at least.
        auto_floor: Lowest ratio of "auto". Default: 0.05.
        auto_ceiling: Highest ratio of "auto". Default: 0.25.
        **options: Options of the method.

    Returns:
        A `Compression`; its `report` describes the last call.

    Raises:
        InputError, UnsupportedModelError: Before anything is patched.

    Calls without images and videos, with `inputs_embeds` or `mm_encoder_outputs`, or continuing a cache that holds
    uncompressed images, pass through unchanged. A cache that was filled in a block must be continued in one. A block
    belongs to the thread or task that entered it; a thread that entered none follows the last one entered. In nested
    blocks the inner one wins. A deep copy keeps what was applied and follows the blocks that it was made in until they
    end. Masked places after a prompt's last token stay as padding, all other padding is made anew.
    """
    changes = {
        "retention_ratio": retention_ratio,
        "method": method,
        "exact": exact,
        "score": score,
        "layer": layer,
        "newlines": newlines,
        "thumbnail_weight": thumbnail_weight,
        "positions": positions,
        "guide": guide,
        "thumbnail_order": thumbnail_order,
        "logits": logits,
        "inside": inside,
        "inside_layer": inside_layer,
        "inside_share": inside_share,
        "max_visual_tokens": max_visual_tokens,
        "max_visual_tokens_per_call": max_visual_tokens_per_call,
        "auto_floor": auto_floor,
        "auto_ceiling": auto_ceiling,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    return Compression(model, _settings(preset, config, {**given, **options}))


def _settings(preset: str | None, config: CompressionConfig | None, changes: dict[str, Any]) -> CompressionConfig:
    """A preset, a config or the defaults, with changes."""
    if config is not None and not isinstance(config, CompressionConfig):
        raise InputError(
            f"config must be a globalcom2.CompressionConfig, got {config!r}. CompressionConfig.from_pretrained(path) reads "
            "a saved one."
        )
    if preset is None:
        return (config or CompressionConfig()).replace(**changes)
    if config is not None:
        raise InputError(f"preset and config must not both be given, got preset={preset!r} and {config!r}. Pass one.")
    return CompressionConfig.from_preset(preset, **changes)


def apply(
    model: ModelT,
    retention_ratio: float | str | None = None,
    method: str | Method | Selector | None = None,
    **options: Any,
) -> ModelT:
    """Compress every call of a model, in all threads, until `remove(model)`. A second call replaces the first.

    Calls that follow a block (see `compress`) follow that instead.

    Args:
        model: See `compress`.
        retention_ratio: See `compress`.
        method: See `compress`.
        **options: Arguments of `compress`, `preset` and `config` too, and options of the method.

    Returns:
        The model; `globalcom2.hf.compression.current(model).report` describes its last call.
    """
    compression = compress(model, retention_ratio, method, **options)
    patching.set_permanent(compression.target, compression)
    compression.used = True
    return model


def remove(model: ModelT) -> ModelT:
    """Undo `apply`. Does nothing on a model to which nothing was applied; blocks stay as they are."""
    patching.pop_permanent(patching.unwrap(model))
    return model


def current(model: torch.nn.Module) -> Compression | None:
    """The compression that calls of `model` go through now, or None."""
    return active(patching.unwrap(model))  # type: ignore[return-value]


Choose = Callable[[Views, bool], Keep]


class Compression:
    """Settings bound to a model; a context manager.

    Args:
        model: See `compress`.
        settings: What `compress` was asked for.
        choose: What decides the masks instead of the method, for studies: a function of a batch of views of one layout
            and of whether their grid is known.
    """

    def __init__(self, model: torch.nn.Module, settings: CompressionConfig, choose: Choose | None = None):
        self.target = patching.unwrap(model)
        self.adapter: Adapter = load_adapter(self.target.config.model_type).guided(settings.guide)
        self.adapter.check(self.target.base_model)
        check_settings(self.adapter, settings, self.target.config.model_type)
        videos = self.adapter.videos()
        self.adapters = {adapter.modality: adapter for adapter in (self.adapter, videos) if adapter is not None}
        self.settings = settings
        layer = -1 if settings.layer is None and not settings.exact else settings.layer  # the published code's
        self.saliency = Saliency(self.target.base_model, self.adapter, settings.score, layer, settings.selector)
        self.taps = self.saliency.taps(self.target.base_model)
        self.drops = inside_model(self.target, settings.inside, settings.inside_layer, settings.inside_share)
        self.used = False
        """Whether a block was entered, or `apply` called."""
        self.forget()
        self._choose = choose
        if choose is None:  # on four tiny crops: an option out of range is told now, not in the middle of a call
            _try_on(self.saliency.example(), settings)

    def __repr__(self) -> str:
        return f"Compression({type(self.target).__name__}, {self.settings.described})"

    @property
    def report(self) -> Report:
        """What happened in the last call; empty if it had no images or videos, or passed through.

        At a ratio of 1 it has an entry for each image, of which everything was kept.

        A call that continues a compressed cache leaves the report of its first turn.
        """
        if not self.used:
            warnings.warn(NEVER_ENTERED, stacklevel=2)
        return self._report

    def forget(self) -> None:
        """Empty the report."""
        self._report = self._reported()

    def _reported(self, entries: Sequence[ImageReport] = (), clock: Clock | None = None) -> Report:
        settings = self.settings
        return Report(settings.retention_ratio, settings.method_name, entries, clock, limits=settings.limits)

    def __enter__(self) -> Compression:
        patching.push(self.target, self)
        self.used = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        patching.pop(self.target, self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_report": self._reported()}  # a device's events cannot be pickled

    def shorten_call(self, model: Any, call: dict[str, Any], *, direct: bool = False, cached: int = 0) -> Short | None:
        """Replace a call's images and videos by features of the kept tokens, and its prompt by a shorter one.

        Gradients flow through the features where the caller has them on.

        Args:
            model: The model that is being called: `target`, or a deep copy of it.
            call: Keyword arguments of `generate` or `forward`, not modified.
            direct: Whether they are those of `forward`, which numbers tokens without looking at the mask and does not
                repeat the ids of cached tokens.
            cached: Tokens that the call's cache holds already, uncompressed.

        Returns:
            The new keyword arguments with what is needed to undo the shortening, or None for a call that passes
            through: nothing to compress, embeddings or an encoder's output instead of ids and pixels, or a ratio of 1
            for all of it.
        """
        settings = self.settings
        embedded = any(call.get(name) is not None for name in ("inputs_embeds", "mm_encoder_outputs"))
        if call.get("input_ids") is None or embedded:
            return None
        if all(call.get(adapter.pixels) is None for adapter in self.adapters.values()):
            return None
        if settings.keeps_all and self.drops is None:
            self._report = self._reported(unshortened_entries(model, call, self.adapters.values()))
            return None
        refuse_static(settings, model, call)
        if self.drops is not None:
            check_call(model, call, direct=direct, cached=cached)
        rotary = self.adapter.three_dimensional
        # Positions of the caller's own are refused below, where it is known that the call does not pass through.
        given = read_prompt({**call, "position_ids": None} if rotary else call, direct=direct, cached=cached)
        found = visuals_of_call(model, call, given.ids, list(self.adapters.values()))
        if any(bool(visuals.placeholder[:, :cached].any()) for visuals in found):
            return None  # the cache holds images already
        ratios = ratios_of_sizes(settings, found)
        whole = ratios is not None and all(ratio == 1.0 for own in ratios for ratio in own)
        if whole and self.drops is None:
            self._report = self._reported(unshortened_entries(model, call, self.adapters.values()))
            return None
        if rotary:
            given = with_axes(given, model, call, self.adapter)
        if isinstance(call.get("logits_to_keep"), Tensor):
            raise InputError(
                "logits_to_keep must be a number of last tokens, got a tensor: places move when tokens drop."
            )
        base, clock = model.base_model, Clock(model.base_model.device)
        with clock.phase("tower"):
            encoded = [self.saliency.encode(base, visuals) for visuals in found]
        with clock.phase("selection"), torch.no_grad():
            batches = [[Batch(*own) for own in self.saliency.views(base, one)] for one in encoded]
            if ratios is None:
                ratios = ratios_of_content(settings, found, batches)
            groups = [chosen_groups(own, each, self.choose) for own, each in zip(batches, ratios, strict=True)]
            chosen = choose(given, found, groups, settings.thumbnail_order, _pad_token_id(model))
        with clock.phase("projection"):
            outputs = project(base, encoded, groups, chosen)
        leaving = None if self.drops is None else Leaving(model, self.drops, found, chosen)
        entries = chosen.entries if leaving is None else leaving.entries()
        self._report = self._reported(in_prompt_order(found, entries), clock)
        original = rotary or settings.positions == "original"
        how = Rewriting(model, original, direct, settings.logits == "full", clock)
        short = rewrite(call, given, found, chosen, outputs, how)
        return short if leaving is None else leaving.mark(short, outputs, how)

    def choose(self, views: Views, known_grid: bool, ratio: float) -> Keep:
        """What stays of images of one layout."""
        if self._choose is not None:
            return self._choose(views, known_grid)
        return choose_tokens(self.settings, views, known_grid, ratio)


def _try_on(views: Views, settings: CompressionConfig) -> None:
    """Raise whatever the method raises on these views; for a function, tell what it is given."""
    try:
        choose_tokens(settings, views, True)
    except GlobalCom2Error:
        raise
    except Exception as error:
        if isinstance(settings.method, str | Method):
            raise
        raise InputError(
            f"method must be a function that works on scores of four crops and a thumbnail, got {settings.method_name!r}, "
            f"which raises {type(error).__name__}: {error}. A function is given no features, keys, [CLS] or further "
            "layers: what reads them is a globalcom2.Method(name, function, reads=(...), layers=(...))."
        ) from error


def _pad_token_id(model: Any) -> int:
    pad = model.generation_config.pad_token_id
    return 0 if pad is None else int(pad)
