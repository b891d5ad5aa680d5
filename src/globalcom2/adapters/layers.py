"""Which layer of a vision tower is read: the default is the deepest whose output is among the features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from globalcom2.errors import InputError


def layer_of(layers: Sequence[nn.Module], layer: int) -> nn.Module:
    """`layers[layer]`; a negative `layer` counts from the end.

    Raises:
        InputError: There is no such layer.
    """
    if not -len(layers) <= layer < len(layers):
        raise InputError(f"layer must be in [{-len(layers)}, {len(layers) - 1}] for this vision tower, got {layer}.")
    return layers[layer]


def deepest_layer(states: int | Sequence[int], count: int) -> int:
    """The layer, counted from the end (-1 is the last), whose output is the deepest of some hidden states.

    Args:
        states: Indices of transformers' `hidden_states`, of which the first is the embeddings; negative ones count from
            the end.
        count: Layers of the tower.
    """
    states = [states] if isinstance(states, int) else states
    return max(state if state < 0 else state - count - 1 for state in states)
