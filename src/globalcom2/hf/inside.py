"""Which visual tokens leave inside the language model, and after which of its layers: FastV and PyramidDrop in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from globalcom2.errors import InputError

INSIDE = ("fastv", "pyramiddrop")
"""Names for `inside`."""
LAYER = 2
"""FastV: layers that read every token of the prompt, unless `inside_layer` says otherwise."""
SHARE = 0.5
"""What stays in each drop, unless `inside_share` says otherwise."""
STAGES = 4
"""PyramidDrop: stages of equal length; tokens leave at the end of each but the last."""


@dataclass(frozen=True)
class Drops:
    """When visual tokens leave inside a language model, and how many."""

    layers: tuple[int, ...]
    """Layers that have run before each drop, ascending."""
    share: float
    """Of the visual tokens that are left in a row, which stay in each drop."""
    name: str = "fastv"

    def left(self, visual: int) -> list[int]:
        """Visual tokens of a row that are left after each drop, of so many in its prompt."""
        counts = []
        for _ in self.layers:
            visual = int(self.share * visual + 0.5)
            counts.append(visual)
        return counts

    def done(self, layer: int) -> int:
        """Drops that lie before layer number `layer`, counted from 0."""
        return sum(before <= layer for before in self.layers)

    def by_layer(self, visual: int, layers: int) -> list[int]:
        """Visual tokens of a row that each of `layers` layers reads, of so many in its prompt."""
        counts = [visual, *self.left(visual)]
        return [counts[self.done(layer)] for layer in range(layers)]


def check_inside(inside: str | None, layer: object, share: object) -> None:
    """Check three settings against each other; that `inside` is a known name is checked elsewhere.

    Raises:
        InputError: A value of the wrong type or out of range, or one that says nothing without another.
    """
    if share is not None:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise InputError(f"inside_share must be in (0, 1], got {share!r}. 0.5 keeps half of the visual tokens.")
        if inside is None:
            raise InputError(f"inside must be given with inside_share, got inside_share={share!r} alone: {_CURE}")
    if layer is not None:
        if type(layer) is not int or layer < 1:
            raise InputError(f"inside_layer must be an integer from 1 on, got {layer!r}. 2 is FastV's.")
        if inside is None:
            raise InputError(f"inside must be given with inside_layer, got inside_layer={layer!r} alone: {_CURE}")
        if inside != "fastv":
            raise InputError(
                f"inside_layer must be left out with inside={inside!r}, got {layer!r}: its layers follow from the depth of the "
                "language model."
            )


_CURE = "pass inside='fastv' too."


def drops_of(inside: str | None, layer: int | None, share: float | None, depth: int) -> Drops | None:
    """The drops in a language model of `depth` layers; None where nothing leaves.

    Raises:
        InputError: The language model has too few layers.
    """
    share = SHARE if share is None else float(share)
    if inside is None or share == 1.0:
        return None
    if inside == "fastv":
        layer = LAYER if layer is None else layer
        if layer >= depth:
            raise InputError(
                f"inside_layer must be less than the {depth} layers of this language model, got {layer}: after the last one "
                "no layer is left to save."
            )
        return Drops((layer,), share, inside)
    if depth < STAGES:
        raise InputError(
            f"inside must be 'fastv' for a language model of fewer than {STAGES} layers, got {inside!r} for one of {depth}."
        )
    return Drops(tuple(int(stage * depth / STAGES + 0.5) for stage in range(1, STAGES)), share, inside)
