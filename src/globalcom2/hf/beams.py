"""Beam search and several returns: each prompt's features stand as often as the prompt does."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from globalcom2.hf.active import Patch

SHORTENED = "globalcom2_shortened"
"""Mark on an encoder's output whose tokens were chosen here."""


class Expand(Patch):
    """Stands in for a model's `_expand_multimodal_outputs`: repeats features for beams and several returns.

    It goes by the placeholders of each prompt. The stock method splits by the length of each item; one item for the whole
    batch makes it repeat the batch in the wrong order without an error. Features of a call that passed through are left
    to the stock method, whatever it does with them.
    """

    stands_for = "_expand_multimodal_outputs"

    def __call__(
        self,
        input_ids: Tensor,
        mm_encoder_output: dict[str, Any],
        expand_size: int = 1,
        inputs_embeds: Tensor | None = None,
    ) -> dict[str, Any]:
        if not any(hasattr(output, SHORTENED) for output in mm_encoder_output.values()):
            stock = self.before or functools.partial(type(self.model)._expand_multimodal_outputs, self.model)
            passed: dict[str, Any] = stock(input_ids, mm_encoder_output, expand_size, inputs_embeds)
            return passed
        config, expanded = self.model.config, dict(mm_encoder_output)
        adapters = self.state.adapters
        for name in ("image", "video"):
            token = getattr(config, f"{name}_token_id", None)
            if token is not None and expanded.get(name) is not None:
                counts = (input_ids == token).sum(1).tolist()
                expanded[name] = adapters[name].repeat(expanded[name], counts, expand_size)
        return expanded
