"""What a call costs, in closed form: floating-point operations of matrix products, counted as torch's counter does.

One multiply-add is two operations. Softmax, norms and activations are left out (under 1 % at these sizes); attention is
counted in full, not as a causal half. Tests compare every formula with `torch.utils.flop_counter.FlopCounterMode`.
"""

from __future__ import annotations

from typing import Any


def prefill_flops(config: Any, tokens: int) -> int:
    """The language model reading `tokens` prompt tokens, with logits for the last one.

    Args:
        config: A decoder's configuration with a gated MLP (Llama, Mistral, Qwen2, ...), `model.config.text_config`.
        tokens: Length of the prompt, text and visual tokens.
    """
    d, m = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or d // heads
    projections = 4 * tokens * d * head_dim * (heads + kv_heads)
    attention = 4 * tokens * tokens * heads * head_dim
    mlp = 6 * tokens * d * m
    return int(config.num_hidden_layers * (projections + attention + mlp) + 2 * d * config.vocab_size)


def tower_flops(config: Any, views: int) -> int:
    """A CLIP-like vision tower on `views` views, all its layers.

    Args:
        config: `model.config.vision_config` of a tower with a [CLS] token.
        views: Thumbnails and crops together.
    """
    patches = (config.image_size // config.patch_size) ** 2
    n, d, m = patches + 1, config.hidden_size, config.intermediate_size
    layer = 8 * n * d * d + 4 * n * n * d + 4 * n * d * m
    embedding = 2 * patches * 3 * config.patch_size**2 * d
    return int(views * (config.num_hidden_layers * layer + embedding))


def projector_flops(vision: Any, text: Any, tokens: int) -> int:
    """LLaVA's two-layer projector on `tokens` tokens of the tower (padding is projected too)."""
    d = text.hidden_size
    return int(2 * tokens * (vision.hidden_size * d + d * d))
