"""Makes visual tokens leave between two layers of a language model, and serves the shorter layers of its cache.

For the length of a call, each layer from the one that is read on has a forward pre-hook. On a prompt, the hook behind a
drop hands on the tokens that are left, with their own rows of the position embeddings, of the positions and of the
mask. On tokens after the prompt, it cuts the mask to the keys that the layer's cache holds. Everything else in the
model, in `generate` and in the cache sees nothing of it. The attention row is read by the tap, as in vision towers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from globalcom2.adapters import tap
from globalcom2.errors import GlobalCom2Error, InputError
from globalcom2.hf.active import lock
from globalcom2.hf.cache import CACHE, INSIDE
from globalcom2.hf.inside_masks import cut_mask, made_mask
from globalcom2.hf.inside_run import Run, extended, taken
from globalcom2.hf.logits import restore_logits

ON_OUTPUT = "globalcom2_inside"
"""Attribute of an encoder's output that was chosen here: the `Run` of its call."""


def run_of(call: dict[str, Any]) -> Run | None:
    """The run of a call that hands a language model its visual tokens."""
    for output in (call.get("mm_encoder_outputs") or {}).values():
        run = getattr(output, ON_OUTPUT, None)
        if run is not None:
            return run  # type: ignore[no-any-return]
    return None


def run_on(cache: Any) -> Run | None:
    """The run that filled a cache. None for a cache whose layers are of one length.

    Raises:
        InputError: The cache was changed since, so that its layers no longer fit each other.
    """
    run: Run | None = getattr(cache, INSIDE, None)
    if run is None:
        return None
    lengths = [layer.get_seq_length() for layer in cache.layers]
    if not any(lengths):  # reset by its owner
        delattr(cache, INSIDE)
        return None
    since = lengths[0] - run.length
    expected = [_length(run, run.drops.done(number)) + since for number in range(len(lengths))]
    if since < 0 or lengths != expected:
        raise InputError(
            f"{CACHE} must be as the call with inside={run.drops.name!r} left it to be continued, got layers of {lengths} "
            f"tokens instead of {expected}. Start with a new cache."
        )
    return run


def _length(run: Run, done: int) -> int:
    return run.before(done).index.shape[1] if done <= len(run.stages) else -1


class Hook:
    """Forward pre-hook of one layer, in one call."""

    def __init__(self, around: Around, number: int):
        self.around, self.number = around, number

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> Any:
        """Arguments of the layer instead of its own; None where these stay."""
        # Another thread's call may be on the same model; one that has just ended is called without `kwargs`.
        if kwargs is None or _around.get() is not self.around:
            return None
        cache = kwargs.get(CACHE, kwargs.get("past_key_values"))
        reading = _reading.get()
        if reading is not None:
            return reading.on_prompt(self.number, module, args, kwargs, cache)
        run: Run | None = getattr(cache, INSIDE, None)
        done = 0 if run is None else run.drops.done(self.number)
        if run is None or not done:
            return None
        return args, _after_prompt(run, done, args[0], kwargs, cache)


class Around:
    """The hooks of one call of a model's generate or forward."""

    def __init__(self, layers: Sequence[nn.Module], run: Run):
        self.tapped = [layers[before - 1].self_attn for before in run.drops.layers]
        with lock:
            for module in self.tapped:
                tap.install(module)  # type: ignore[arg-type]
        first = run.drops.layers[0] - 1
        self.handles = [
            layer.register_forward_pre_hook(Hook(self, number), with_kwargs=True)
            for number, layer in enumerate(layers)
            if number >= first
        ]

    def remove(self) -> None:
        """Take everything off again."""
        for handle in self.handles:
            handle.remove()
        with lock:
            for module in self.tapped:
                tap.uninstall(module)  # type: ignore[arg-type]


_around: ContextVar[Around | None] = ContextVar("globalcom2_around", default=None)
_reading: ContextVar[Reading | None] = ContextVar("globalcom2_reading", default=None)


@contextmanager
def around(model: Any, run: Run | None) -> Iterator[None]:
    """The block is a call of `model` in which visual tokens leave, or that continues the cache of one; None: neither.

    Raises:
        GlobalCom2Error: The language model read the prompt without its layers' hooks.
    """
    if run is None:
        token = _around.set(None)
        try:
            yield
        finally:
            _around.reset(token)
        return
    mine = Around(layers_of(model), run)
    token = _around.set(mine)
    try:
        yield
    finally:
        _around.reset(token)
        mine.remove()
    if len(run.stages) < len(run.drops.layers):
        raise GlobalCom2Error(
            f"inside={run.drops.name!r} must see the layers of the language model one by one, got a model that ran without "
            "them, as a compiled one may. Compile nothing, or leave inside out."
        )


@contextmanager
def reading(call: dict[str, Any]) -> Iterator[None]:
    """The block is a forward of the model; of one with visual tokens of a run, the language model's tokens leave."""
    run = run_of(call)
    if run is None:
        token = _reading.set(None)
        try:
            yield
        finally:
            _reading.reset(token)
        return
    mine = Reading(run)
    token = _reading.set(mine)
    try:
        with tap.record(None, mine.read) as mine.recording:
            yield
    finally:
        _reading.reset(token)


def with_logits_in_places(output: Any, run: Run, last: int) -> Any:
    """A model's output with its logits at the places of the prompt that the language model was given.

    Args:
        output: The output of a call without labels.
        run: The call's.
        last: How many last places are wanted, 0 for all.
    """
    logits = output.logits if hasattr(output, "logits") else next(item for item in output if isinstance(item, Tensor))
    return restore_logits(output, run.places_of_logits(logits.shape[1], last))


def layers_of(model: Any) -> Any:
    """The layers of a model's language model."""
    return model.get_decoder().layers


class Reading:
    """One forward of the language model over a whole prompt, and what was generated since where there is no cache."""

    recording: tap.Recording

    def __init__(self, run: Run):
        self.run = run
        self._arguments: tuple[int, dict[str, Any]] = (0, {})
        """Number of drops, and what the layers after them get."""

    def read(self, query: Tensor, key: Tensor, mask: Any, scaling: float | None) -> Tensor:
        """What the tap calls."""
        return self.run.scores(query, key, scaling)

    def on_prompt(self, number: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], cache: Any) -> Any:
        """Arguments of layer `number` instead of its own; None where all tokens are left."""
        run, layers = self.run, self.run.drops.layers
        self.recording.module = None
        if number in layers:
            if len(run.stages) == layers.index(number):
                run.drop(self.recording.rows[-1])
                if cache is not None:
                    setattr(cache, INSIDE, run)
            args = (self._left(run.drops.done(number), args[0]), *args[1:])
        if number + 1 in layers and len(run.stages) == layers.index(number + 1):
            self.recording.module = module.self_attn
        done = run.drops.done(number)
        if not done:
            return None
        if self._arguments[0] != done:
            self._arguments = done, self._cut(done, kwargs, args[0])
        return args, {**kwargs, **self._arguments[1]}

    def _left(self, done: int, hidden: Tensor) -> Tensor:
        """Of the hidden states of those left before a drop, (rows, left, dim), those left after it."""
        stage = self.run.stages[done - 1]
        before = self.run.before(done - 1).index.shape[1]
        places = extended(
            stage.chosen.to(hidden.device), before, hidden.shape[1] - before, len(hidden) // self.run.batch
        )
        return taken([hidden], places)[0]

    def _cut(self, done: int, kwargs: dict[str, Any], hidden: Tensor) -> dict[str, Any]:
        """Positions and mask of the tokens that are left."""
        stage, device = self.run.stages[done - 1], hidden.device
        more, times = hidden.shape[1] - stage.index.shape[1], len(hidden) // self.run.batch
        places = extended(stage.index.to(device), self.run.length, more, times)
        real = extended(stage.real.to(device), 0, 0, times)
        real = nn.functional.pad(real, (0, more), value=True)
        cut: dict[str, Any] = {
            "position_embeddings": taken([part.to(device) for part in kwargs["position_embeddings"]], places)
        }
        if kwargs.get("position_ids") is not None:
            cut["position_ids"] = kwargs["position_ids"].to(device).expand(len(places), -1).gather(1, places)
        mask = kwargs.get("attention_mask")
        if mask is not None:
            cut["attention_mask"] = cut_mask(mask.to(device), places, real, rows=places)
        elif stage.padded:
            cut["attention_mask"] = made_mask(real, hidden.shape[1])
        return cut


def _after_prompt(run: Run, done: int, hidden: Tensor, kwargs: dict[str, Any], cache: Any) -> dict[str, Any]:
    """Arguments of a layer after `done` drops for tokens after the prompt: its cache holds fewer keys."""
    stage, mask = run.stages[done - 1], kwargs.get("attention_mask")
    if mask is None and not stage.padded:
        return kwargs
    device, times = hidden.device, len(hidden) // run.batch
    keys = cache.get_seq_length() if mask is None else mask.shape[-1]  # of the first layer, with the new tokens
    more = keys - run.length
    real = extended(stage.real.to(device), 0, 0, times)
    real = nn.functional.pad(real, (0, more), value=True)
    if mask is None:
        return {**kwargs, "attention_mask": made_mask(real, hidden.shape[1])}
    columns = extended(stage.index.to(device), run.length, more, times)
    return {**kwargs, "attention_mask": cut_mask(mask.to(device), columns, real)}
