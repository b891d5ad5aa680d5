"""The thinkers of Qwen2.5-Omni and Qwen3-Omni: native resolution and M-RoPE, in prompts without sound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from globalcom2.adapters.rotary import RotaryAdapter
from globalcom2.adapters.windowed import WindowedTower
from globalcom2.errors import InputError


class ThinkerAdapter(RotaryAdapter):
    """Adapter of `qwen3_omni_moe_thinker`, whose positions follow from the ids alone."""

    def positions(self, base: Any, call: dict[str, Any]) -> Tensor | None:
        """Positions (3, batch, long) of the full prompt, on the host. The model's own memory of positions is left alone.

        Raises:
            InputError: Sound, or prompts and sizes that do not fit.
        """
        if call.get("input_features") is not None:
            raise InputError(
                f"input_features must be left out of a compressed call of {base.config.model_type}, got sound: nobody has "
                "compared images and sound in one prompt. Leave the block for them."
            )
        self.grids(base, call)
        ids, mask, grids = call["input_ids"], call.get("attention_mask"), call[self.grid_name]
        mask = torch.ones_like(ids) if mask is None else mask
        try:
            found, _ = base.get_rope_index(ids, image_grid_thw=grids.cpu(), attention_mask=mask)
        except Exception as error:  # whatever the model's own code raises where a prompt and its sizes do not fit
            raise InputError(
                f"input_ids and {self.grid_name} must fit together for positions, got a prompt that "
                f"{type(base).__name__}.get_rope_index refuses ({type(error).__name__}: {error}). Build both with one call of "
                "the processor."
            ) from error
        positions: Tensor = found.long()
        return positions


class WindowedThinkerAdapter(WindowedTower, ThinkerAdapter):
    """Adapter of `qwen2_5_omni_thinker`, whose tower is Qwen2.5-VL's."""
