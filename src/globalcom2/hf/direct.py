"""Direct calls, `model(**inputs)` and `model.forward(**inputs)`, and their continuation token by token."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import torch

from globalcom2.errors import GlobalCom2Error, InputError
from globalcom2.hf.active import Patch, Short, part_of_call, seen_to, state_of
from globalcom2.hf.cache import CACHE, cache_of, cached_length, recall, remember, with_cache_named
from globalcom2.hf.inside_hooks import around, reading, run_on, with_logits_in_places
from globalcom2.hf.logits import restore_logits
from globalcom2.hf.prompt import PIXELS

# The module whose forward runs next: a replica of torch's DataParallel shares its attributes with the model.
_next: ContextVar[Any] = ContextVar("globalcom2_next", default=None)
# The module whose call `Heal` has shortened, what `Finish` has to finish, and what it has to leave.
_pending: ContextVar[Any] = ContextVar("globalcom2_pending", default=None)


class Forward(Patch):
    """Stands in for a model's `forward`."""

    stands_for = "forward"

    # Compilers leave this frame alone and compile what it calls.
    @functools.partial(torch.compiler.disable, recursive=False)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        noted = _next.get()
        _next.set(None)
        model = noted if noted is not None and state_of(noted) is self.state else self.model
        if args and isinstance(args[0], torch.nn.Module):  # bound again by somebody who unwrapped the model
            model, args = args[0], args[1:]
        forward = self.before if self.before is not None else functools.partial(type(model).forward, model)
        if seen_to(self.state, kwargs):
            with reading(kwargs):
                return forward(*args, **kwargs)
        with self.state.call(self.model):
            call, short = self.shortened(model, args, kwargs)
            pixels = any(kwargs.get(name) is not None for name in PIXELS)
            with part_of_call(self.state, through=call is None and pixels), _leaving(model, call, short):
                output = forward(*args, **kwargs) if call is None else forward(**call)
            return output if short is None else _finished(output, short)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def shortened(
        self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any] | None, Short | None]:
        """The call to make instead, None where the caller's own goes through; and what was shortened in it."""
        compression = self.state.active
        if compression is None:
            return None, None
        self.state.warn_of_others()
        names = list(inspect.signature(type(model).forward).parameters)[1:]
        call = with_cache_named({**dict(zip(names, args, strict=False)), **kwargs})
        cache = call.get(CACHE)
        memory = recall(cache, call.get("input_ids"))
        if memory is not None:
            return memory.continued_step(call, cached_length(cache)), None
        compression.forget()
        check_cache(call)
        with ExitStack() as stack:
            for context in _autocasts(self.before):
                stack.enter_context(context)
            short = compression.shorten_call(model, call, direct=True, cached=cached_length(cache))
        return (None, None) if short is None else (short.call, short)


@contextmanager
def _leaving(model: Any, call: dict[str, Any] | None, short: Short | None) -> Iterator[None]:
    """The block is a direct call: visual tokens may leave inside the language model, or may have left its cache."""
    run = None if call is None else run_on(call.get(CACHE)) if short is None else short.run
    with around(model, run), reading(call or {}):
        yield


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _finished(output: Any, short: Short) -> Any:
    """The cache that the call filled remembers its prompt, and logits go back to their places."""
    own = short.call.get(CACHE)
    remember(own if own is not None else cache_of(output), short.memory)
    if short.run is not None and short.restored:
        output = with_logits_in_places(output, short.run, int(short.call.get("logits_to_keep") or 0))
    return output if short.logits is None else restore_logits(output, short.logits)


def check_cache(call: dict[str, Any]) -> None:
    """Raise `InputError` for images with a cache that does not tell how much it holds (continuous batching)."""
    cache = call.get(CACHE)
    if cache is None or hasattr(cache, "get_seq_length"):
        return
    for name in PIXELS:
        if call.get(name) is not None:
            raise InputError(
                f"{name} must not be given with a {type(cache).__name__} in a compressed call: it does not tell what it "
                "holds. Use generate for prompts with images, or leave the block."
            )


class Heal(Patch):
    """Forward pre-hook: notes the module that is called, and puts `Forward` back where somebody has taken it away.

    This call does not go through it yet, so it is shortened here and finished by `Finish`.
    """

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        _next.set(model)
        _give_up()
        found = any(isinstance(f, Forward) and f.state is self.state for f in _chain(model.__dict__.get("forward")))
        if found or self.state.active is None or seen_to(self.state, kwargs):
            return None
        forward = model.__dict__["forward"] = Forward(model, self.state)
        call, short = forward.shortened(model, args, kwargs)
        stack = ExitStack()
        stack.enter_context(_leaving(model, call, short))
        _pending.set((model, short, stack))
        return None if call is None else ((), call)


class Finish(Patch):
    """Forward hook: does what `Forward` would have done after a call that `Heal` has shortened."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, model: Any, args: Any, output: Any) -> Any:
        pending = _pending.get()
        if pending is None or pending[0] is not model:
            return None
        _pending.set(None)
        pending[2].close()
        return None if pending[1] is None else _finished(output, pending[1])


class Bypassed(Patch):
    """Forward pre-hook of the model below the head: a call that goes round the head is not compressed, and says so."""

    def __call__(self, base: Any, args: Any) -> None:
        if not torch.compiler.is_compiling() and not seen_to(self.state) and _pending.get() is None:
            compression = self.state.active
            if compression is not None:
                compression.forget()


def _give_up() -> None:
    """Forget a call that `Heal` has shortened and that `Finish` has not seen, since it raised."""
    pending = _pending.get()
    _pending.set(None)
    if pending is not None:
        with suppress(GlobalCom2Error):
            pending[2].close()


def _chain(forward: Any) -> Iterator[Any]:
    """A callable and what it wraps, outermost first."""
    while forward is not None:
        yield forward
        inner = (getattr(forward, name, None) for name in ("__func__", "__wrapped__", "func"))
        forward = next((own for own in inner if own is not None), None)


def _autocasts(forward: Any) -> list[Any]:
    """Autocast contexts that `forward` runs in, as accelerate puts them around it, outermost first."""
    cells = [cell for function in _chain(forward) for cell in getattr(function, "__closure__", None) or ()]
    found = []
    for cell in cells:
        with suppress(ValueError):  # an empty one
            found += [cell.cell_contents] if isinstance(cell.cell_contents, torch.autocast) else []
    return found
