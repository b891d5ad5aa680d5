"""Tiny random-weight models of every family, with their real processors. One module per group of families."""

from collections.abc import Callable

from tiny import Tiny, llava_next

FAMILIES: dict[str, Callable[[], Tiny]] = {"llava_next": llava_next}
