"""What a call costs, in closed form: floating-point operations, key-value cache, activations.

Operations are those of matrix products, counted as torch's counter does: one multiply-add is two. Softmax, norms and
activations are left out (under 1 % at these sizes). Attention is counted in full; `masked_flops` gives the half of it
that causal kernels skip. Tests compare every formula with `torch.utils.flop_counter.FlopCounterMode`. Configurations are
transformers' own objects; nothing is imported here.
"""

from __future__ import annotations

from typing import Any


def prefill_flops(config: Any, tokens: int) -> int:
    """The language model reading `tokens` prompt tokens, with logits for the last one.

    Args:
        config: A decoder's configuration with a gated MLP (Llama, Mistral, Qwen2, ...), `model.config.text_config`.
        tokens: Length of the prompt, text and visual tokens.
    """
    return _decoder_flops(config, queries=tokens, keys=tokens)


def masked_flops(config: Any, tokens: int) -> int:
    """The part of `prefill_flops` that causal kernels (sdpa, flash) skip: attention of a query to later keys."""
    heads, _, head_dim = _heads(config)
    return int(config.num_hidden_layers * 4 * heads * head_dim * (tokens * (tokens - 1) // 2))


def decode_flops(config: Any, tokens: int) -> int:
    """The language model generating one token after `tokens` cached ones."""
    return _decoder_flops(config, queries=1, keys=tokens + 1)


def _decoder_flops(config: Any, queries: int, keys: int) -> int:
    heads, kv_heads, head_dim = _heads(config)
    d = config.hidden_size
    projections = 4 * queries * d * head_dim * (heads + kv_heads)
    attention = 4 * queries * keys * heads * head_dim
    mlp = 6 * queries * d * config.intermediate_size
    return int(config.num_hidden_layers * (projections + attention + mlp) + 2 * d * config.vocab_size)


def prefill_flops_llm_viewer(config: Any, tokens: int) -> int:
    """The language model reading `tokens` visual tokens, counted as LLM-Viewer does: element-wise work too, no logits.

    The paper used LLM-Viewer.

    Source: LLM-Viewer (https://arxiv.org/abs/2402.16363), weights of softmax, norms and additions as inferred from its
    figures; agrees with the paper's ten TFLOPs figures within 0.06.
    """
    d, heads = config.hidden_size, config.num_attention_heads
    matrices = _decoder_flops(config, tokens, tokens) - 2 * d * config.vocab_size
    return int(matrices + config.num_hidden_layers * (5 * heads * tokens * tokens + 18 * tokens * d))


def tower_flops(config: Any, views: int, class_token: bool = True) -> int:
    """A plain vision transformer (CLIP, SigLIP, InternViT) on `views` views, all its layers.

    Args:
        config: `model.config.vision_config`.
        views: Thumbnails and crops together.
        class_token: Whether a [CLS] token is added to the patches.
    """
    image, patch = _side(config.image_size), _side(config.patch_size)
    patches = (image // patch) ** 2
    n, d, m = patches + int(class_token), config.hidden_size, config.intermediate_size
    layer = 8 * n * d * d + 4 * n * n * d + 4 * n * d * m
    embedding = 2 * patches * 3 * patch**2 * d
    return int(views * (config.num_hidden_layers * layer + embedding))


def projector_flops(vision: Any, text: Any, tokens: int) -> int:
    """LLaVA's two-layer projector on `tokens` tokens of the tower (padding is projected too)."""
    d = text.hidden_size
    return int(2 * tokens * (vision.hidden_size * d + d * d))


def kv_cache_bytes(config: Any, tokens: int, bytes_per_value: int = 2) -> int:
    """Keys and values of `tokens` tokens in all layers."""
    _, kv_heads, head_dim = _heads(config)
    return int(2 * config.num_hidden_layers * kv_heads * head_dim * bytes_per_value * tokens)


def activation_bytes(config: Any, tokens: int, bytes_per_value: int = 2) -> int:
    """Largest working set of one prefill layer: the residual and its norm, and the gated MLP's three wide tensors.

    An estimate for kernels that keep no attention matrix (sdpa, flash); allocators add to it.
    """
    return int(tokens * (2 * config.hidden_size + 3 * config.intermediate_size) * bytes_per_value)


def _heads(config: Any) -> tuple[int, int, int]:
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, kv_heads, head_dim


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, (list, tuple)) else size)
