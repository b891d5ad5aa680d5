"""GLM-4.1V, GLM-4.5V, GLM-4.6V and GLM-OCR: native resolution, blocks of patches, M-RoPE.

With several images in a prompt, transformers 5.24 gives beams of these models the features of other prompts. Compressed calls
put them in order.
"""

from __future__ import annotations

from globalcom2.adapters.rotary import RotaryAdapter


class GlmVAdapter(RotaryAdapter):
    """Adapter of `glm4v`, `glm4v_moe`, `glm46v` and `glm_ocr`."""
