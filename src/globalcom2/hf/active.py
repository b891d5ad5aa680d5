"""Which compression a call of a model goes through: what was entered here, by others, or applied for good."""

from __future__ import annotations

import copy
import functools
import inspect
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from globalcom2.adapters import tap
from globalcom2.adapters.base import Adapter
from globalcom2.hf.cache import ATTRIBUTE, Memory
from globalcom2.hf.inside_run import Run
from globalcom2.hf.logits import Places
from globalcom2.hf.prompt import PIXELS, ShortPrompt
from globalcom2.hf.report import Clock

CACHES = ("cache", "past_key_values")
"""What transformers calls a cache, in any version."""
STATE = "_globalcom2"
"""The attribute of a model that holds its `State`."""
SEVERAL = (
    "globalcom2: other threads have entered blocks on this model whose settings differ, from each other's or from what was "
    "applied. This thread has entered none, so its calls follow the last block entered. Enter a block in this thread."
)


@dataclass
class Short:
    """A shortened call."""

    call: dict[str, Any]
    prompt: ShortPrompt
    memory: Memory
    clock: Clock
    logits: Places | None = None
    """How a direct call's logits go back to the caller's places; None where they are the caller's already."""
    run: Run | None = None
    """What leaves inside the language model; None where nothing does."""
    restored: bool = False
    """Whether logits go back to the places of tokens that left inside the language model."""


class Compressor(Protocol):
    """What patched models need of a `Compression`."""

    taps: list[nn.Module]
    """Attention modules whose rows it reads."""
    adapters: dict[str, Adapter]
    """By modality."""

    def shorten_call(self, model: Any, call: dict[str, Any], *, direct: bool = False, cached: int = 0) -> Short | None:
        """See `Compression.shorten_call`."""

    def forget(self) -> None:
        """The report is that of no call."""


lock = threading.RLock()
"""Blocks may be entered and left, and calls begin and end, in several threads at once."""


class Entry:
    """One time that a block was entered."""

    def __init__(self, compression: Compressor):
        self.compression = compression
        self.thread = threading.get_ident()


# What this thread or task has entered, outermost first, on any model.
_entered: ContextVar[tuple[Entry, ...]] = ContextVar("globalcom2_entered", default=())


class Patch:
    """What stands on a patched model: in place of its `generate` or `forward`, or as a hook."""

    def __init__(self, model: Any, state: State):
        self.model = model
        self.state = state
        self.before = model.__dict__.get(self.stands_for)
        """What the instance had in its place, if anything."""
        self._look_alike()

    stands_for = ""
    """The method that it replaces."""

    def _look_alike(self) -> None:
        if self.stands_for:  # signature and docstring
            method = getattr(type(self.model), self.stands_for)
            functools.update_wrapper(self, method, updated=())  # type: ignore[arg-type]
            own = inspect.signature(method)  # of the bound method: callers look for arguments in it
            self.__signature__ = own.replace(parameters=list(own.parameters.values())[1:])

    def __deepcopy__(self, memo: dict[int, Any]) -> Patch:
        clone = copy.copy(self)
        memo[id(self)] = clone
        clone.model = memo.get(id(self.model), self.model)
        clone.state = copy.deepcopy(self.state, memo)
        clone.before = None
        return clone

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "state": self.state, "before": self.before}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
        self._look_alike()


class State:
    """What is active on one model. Blocks belong to the thread or task that entered them.

    A thread without a block of its own follows the last one entered anywhere, so that a block may be entered in one
    thread and the model called in another, as streamers do.
    """

    def __init__(self) -> None:
        self.stack: list[Entry] = []
        self.permanent: Compressor | None = None
        self.origin: list[Entry] = []
        """Of a deep copy: the live stack of the model that it was made of."""
        self.followed: list[Entry] = []
        """Of a deep copy: what was entered when it was made."""
        self.running = 0
        """Calls that have not ended: taps and hooks stay until they do."""
        self.tapped: list[nn.Module] = []
        """One item for each `tap.install`."""
        self.adapters: dict[str, Adapter] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        """A copy of the model keeps what was applied, and follows the blocks that it was made in until they end."""
        clone = State()
        memo[id(self)] = clone
        clone.permanent, clone.adapters = self.permanent, self.adapters
        clone.origin = self.stack if self.stack else self.origin
        clone.followed = list(clone.origin)
        clone.tapped = copy.deepcopy(self.tapped, memo)
        return clone

    def __getstate__(self) -> dict[str, Any]:
        """Of a pickled model: what was applied stays, blocks end."""
        kept = {name: getattr(self, name) for name in ("permanent", "tapped", "adapters")}
        return {**kept, "kernels": [tap.untapped(module) for module in self.tapped]}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        for implementation in kept.pop("kernels"):  # another process may not know them yet
            tap.register(implementation)
        self.__dict__.update(kept)

    @property
    def inherited(self) -> list[Entry]:
        """Of a deep copy: the blocks that it was made in and that have not ended, outermost first."""
        return [entry for entry in self.followed if entry in self.origin]

    @property
    def own(self) -> list[Entry]:
        """What this thread or task has entered on this model, outermost first."""
        live = [*self.stack, *self.inherited]
        return [entry for entry in _entered.get() if entry in live]

    @property
    def active(self) -> Compressor | None:
        """The compression of a call that begins now."""
        if own := self.own:
            return own[-1].compression
        for entered in (self.stack, self.inherited):
            if entered:
                return entered[-1].compression
        return self.permanent

    @property
    def idle(self) -> bool:
        """Whether nothing is active, here or elsewhere, and no call runs."""
        return not (self.stack or self.inherited or self.permanent or self.running)

    @contextmanager
    def call(self, model: Any) -> Iterator[None]:
        """The block is a call of the model; when the last one ends after the last block, the model is left clean."""
        with lock:
            self.running += 1
        try:
            yield
        finally:
            with lock:
                self.running -= 1
                unpatch_if_idle(model, self)

    def warn_of_others(self) -> None:
        """Warn where this thread has to guess which block it follows."""
        entered = list(self.stack)
        if self.own or not entered or {entry.thread for entry in entered} == {threading.get_ident()}:
            return
        others = {entry.thread: entry.compression for entry in entered}  # of each thread, the innermost
        settings = [getattr(compression, "settings", None) for compression in (*others.values(), self.permanent)]
        settings = settings if self.permanent is not None else settings[:-1]
        if any(other != settings[0] for other in settings):
            warnings.warn(SEVERAL, stacklevel=4)

    def take_back(self, compression: Compressor | None) -> None:
        """Take a compression's taps off again, unless a call runs: the last one to end takes off all."""
        if compression is None or self.running:
            return
        for module in compression.taps:
            found = [i for i, other in enumerate(self.tapped) if other is module]
            if found:
                tap.uninstall(self.tapped.pop(found[-1]))

    def enter(self, compression: Compressor) -> None:
        """A block begins."""
        entry = Entry(compression)
        self.stack.append(entry)
        _entered.set((*_entered.get(), entry))

    def leave(self, compression: Compressor) -> bool:
        """A block ends: the innermost of this thread with that compression, else of any. False if there is none."""
        same = [entry for entry in self.stack if entry.compression is compression]
        found = [entry for entry in self.own if entry in same] or same
        if not found:
            return False
        self.stack.remove(found[-1])
        _entered.set(tuple(entry for entry in _entered.get() if entry is not found[-1]))
        return True


def state_of(model: Any) -> State | None:
    """The state of an unwrapped model, if it has one."""
    return model.__dict__.get(STATE)  # type: ignore[no-any-return]


def active(model: Any) -> Compressor | None:
    """The compression that calls of this (unwrapped) model go through now."""
    state = state_of(model)
    return None if state is None else state.active


def unpatch_if_idle(model: Any, state: State) -> None:
    """Leave a model as it was before its first block, if nothing is active on it. Needs the lock."""
    if not state.idle or state_of(model) is not state:
        return
    del model.__dict__[STATE]
    for name, patch in list(model.__dict__.items()):
        if isinstance(patch, Patch) and patch.state is state:  # else its owner has put something else there
            del model.__dict__[name]
            if patch.before is not None:
                model.__dict__[name] = patch.before
    for module in (model, model.base_model):
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, Patch) and hook.state is state]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
    for module in state.tapped:
        tap.uninstall(module)
    state.tapped.clear()


@dataclass(frozen=True)
class Running:
    """A call of a patched model's generate or forward, in this thread or task."""

    state: State
    own: list[Entry]
    """What the thread had entered when the call began."""
    through: bool
    """Whether its images go to the model as they came."""
    memory: Memory | None
    """Of a call that continues a cache: what that remembers."""


_running: ContextVar[tuple[Running, ...]] = ContextVar("globalcom2_running", default=())


def seen_to(state: State, call: dict[str, Any] | None = None) -> bool:
    """Whether a call of that state's model is part of one that has been seen to.

    From within a callback, a caller may make calls of its own. They are told by a block entered since, by pixels, which a
    shortened call has no more, and by a cache that another call has shortened.
    """
    outer = next((run for run in reversed(_running.get()) if run.state is state), None)
    if outer is None or outer.own != state.own:
        return False
    if call is None or outer.through:
        return True
    memory = next((memory for name in CACHES if (memory := getattr(call.get(name), ATTRIBUTE, None)) is not None), None)
    return all(call.get(name) is None for name in PIXELS) and (memory is None or memory is outer.memory)


@contextmanager
def part_of_call(state: State, *, through: bool = False, memory: Memory | None = None) -> Iterator[None]:
    """The block is part of a call of that state's model, see `Running`."""
    token = _running.set((*_running.get(), Running(state, state.own, through, memory)))
    try:
        yield
    finally:
        _running.reset(token)
