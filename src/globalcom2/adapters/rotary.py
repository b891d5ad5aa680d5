"""What native-resolution families share whose language model numbers tokens by time, row and column (M-RoPE)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from globalcom2.adapters.native import NativeAdapter
from globalcom2.errors import InputError


class RotaryAdapter(NativeAdapter):
    """Families whose language model numbers tokens by time, row and column (M-RoPE)."""

    three_dimensional = True

    def positions(self, base: Any, call: dict[str, Any]) -> Tensor | None:
        """Positions (3, batch, long) of the full prompt, on the host. The model's own memory of positions is left alone.

        Raises:
            InputError: No `mm_token_type_ids`, or such as do not fit prompts and images.
        """
        ids, mask, types = call["input_ids"], call.get("attention_mask"), call.get("mm_token_type_ids")
        if types is None or types.shape != ids.shape:
            got = None if types is None else tuple(types.shape)
            raise InputError(
                f"mm_token_type_ids must be given with the shape of input_ids {tuple(ids.shape)}, since positions follow from "
                f"it, got {got}. Pass everything the processor returned, and a column of zeros for each token added since."
            )
        types = types.cpu()
        shown = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        for kind, name in ((1, "image"), (2, "video")):
            token = getattr(base.config, f"{name}_token_id", None)
            if token is not None and bool((((types == kind) != (ids == token)) & shown).any()):
                raise InputError(
                    f"mm_token_type_ids must be {kind} where input_ids have {name} placeholders and nowhere else, got others. "
                    "Pass both as the processor returned them."
                )
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        more = {n: x.cpu() if isinstance(x, Tensor) else x for n in names if (x := call.get(n)) is not None}
        try:
            found, _ = base.get_rope_index(ids, mm_token_type_ids=types, attention_mask=mask, **more)
        except Exception as error:  # whatever the model's own code raises where a prompt and its sizes do not fit
            raise InputError(
                f"input_ids and {' and '.join(more)} must fit together for positions, got a prompt that "
                f"{type(base).__name__}.get_rope_index refuses ({type(error).__name__}: {error}). Images or videos "
                "that follow one another without a token between them, or a mask that hides a part of one, are causes."
            ) from error
        return found  # type: ignore[no-any-return]
