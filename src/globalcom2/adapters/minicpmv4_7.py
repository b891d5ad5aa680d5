"""MiniCPM-V 4.7: cut and tagged as MiniCPM-V 4.6, but tokens are numbered by their places on one canvas per image (M-RoPE)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from globalcom2.adapters.minicpmv4_6 import MiniCPMV46Adapter
from globalcom2.errors import InputError


class MiniCPMV47Adapter(MiniCPMV46Adapter):
    """Adapter of `minicpmv4_7`. Where a token lies on the canvas follows from all views, so kept ones keep their numbers."""

    three_dimensional = True

    def positions(self, base: Any, call: dict[str, Any]) -> Tensor | None:
        """Positions (3, batch, long) of the full prompt, on the host. The model's own memory of positions is left alone.

        Raises:
            InputError: No `mm_token_type_ids`, or sizes that do not fit the prompts.
        """
        ids, types, sizes = call["input_ids"], call.get("mm_token_type_ids"), call.get("target_sizes")
        if types is None or types.shape != ids.shape:
            got = None if types is None else tuple(types.shape)
            raise InputError(
                f"mm_token_type_ids must be given with the shape of input_ids {tuple(ids.shape)}, since positions follow from "
                f"it, got {got}. Pass everything the processor returned, and a column of zeros for each token added since."
            )
        try:
            found: Tensor = base.get_rope_index(
                ids,
                mm_token_type_ids=types.cpu(),
                target_sizes=None if sizes is None else sizes.cpu(),
                downsample_mode=call.get("downsample_mode"),
                attention_mask=call.get("attention_mask"),
            )[0]
        except Exception as error:  # whatever the model's own code raises where a prompt and its sizes do not fit
            raise InputError(
                f"input_ids and target_sizes must fit together for positions, got a prompt that {type(base).__name__}."
                f"get_rope_index refuses ({type(error).__name__}: {error}). Build both with one call of the processor."
            ) from error
        return found
