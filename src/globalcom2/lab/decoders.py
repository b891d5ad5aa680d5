"""How the layers of language models are built, read from their configurations: what each multiplies per token.

One reader per kind of language model. Of experts, those count that a token is sent to, whatever an implementation computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from globalcom2.errors import UnsupportedModelError

CHUNK = 64
"""Tokens per chunk of the gated delta rule, in transformers and in its kernels."""


@dataclass(frozen=True)
class DeltaRule:
    """A recurrent layer with the gated delta rule: its state has `heads` matrices of `keys` x `values`."""

    heads: int
    keys: int
    values: int

    def flops(self, tokens: int) -> int:
        """Matrix products on `tokens` tokens, in whole chunks; one token alone makes none."""
        if tokens == 1:
            return 0
        chunk = 4 * CHUNK**2 * self.keys + 2 * CHUNK**2 * self.values + 6 * CHUNK * self.keys * self.values
        return -(-tokens // CHUNK) * self.heads * chunk


@dataclass(frozen=True)
class DecoderLayer:
    """One layer of a language model."""

    weights: int
    """Weights that each token is multiplied with: projections, MLP or the token's experts, router."""
    attention: int = 0
    """Width of the queries, heads x head_dim; 0 in a layer without attention."""
    cache: int = 0
    """Values that each token leaves in the cache."""
    window: int | None = None
    """Most tokens whose keys stay in the cache; None for all."""
    state: int = 0
    """Values of a recurrent state, whatever the prompt's length."""
    wide: int = 0
    """Width of the MLP, of all experts of a token together."""
    convolution: tuple[int, int] = (0, 0)
    """Channels and taps of a convolution along the prompt."""
    recurrence: DeltaRule | None = None
    expansion: int = 0
    """Weights that each cached token is multiplied with once more, where the cache holds keys and values in short form."""
    visual: int = 0
    """Weights that a visual token is multiplied with beyond those of a text token; less than 0 for fewer."""


def decoder_layers(config: Any) -> list[DecoderLayer]:
    """The layers of a language model.

    Args:
        config: `model.config.get_text_config()`.

    Raises:
        UnsupportedModelError: A kind of language model whose layers are not known here.
    """
    reader = READERS.get(config.model_type)
    if reader is None:
        raise UnsupportedModelError(
            f"costs must be counted for a known language model ({', '.join(sorted(READERS))}), got {config.model_type!r}, "
            "whose layers nobody has compared with torch's counter yet."
        )
    return [reader(config, number) for number in range(config.num_hidden_layers)]


def heads_of(config: Any) -> tuple[int, int, int]:
    """Query heads, key-value heads, and the width of one."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, kv_heads, head_dim


def _attention(config: Any, number: int, heads: int | None = None, gates: int = 0) -> dict[str, Any]:
    """Fields of a layer with attention; `gates` is the width of what gates its output."""
    queries, kv_heads, head_dim = heads_of(config)
    queries = heads or queries
    kinds = getattr(config, "layer_types", None)
    sliding = kinds is not None and kinds[number] == "sliding_attention"
    return {
        "weights": config.hidden_size * (2 * head_dim * (queries + kv_heads) + gates),
        "attention": queries * head_dim,
        "cache": 2 * kv_heads * head_dim,
        "window": getattr(config, "sliding_window", None) if sliding else None,
    }


def _with_mlp(config: Any, layer: dict[str, Any], wide: int, router: int = 0) -> DecoderLayer:
    """A layer with a gated MLP that is `wide`, or with experts that are together, and a router to so many experts."""
    layer["weights"] += config.hidden_size * (3 * wide + router)
    return DecoderLayer(**layer, wide=wide)


def _plain(config: Any, number: int) -> DecoderLayer:
    return _with_mlp(config, _attention(config, number), config.intermediate_size)


def _qwen3_moe(config: Any, number: int) -> DecoderLayer:
    layer = _attention(config, number)
    sparse = number not in config.mlp_only_layers and (number + 1) % config.decoder_sparse_step == 0
    if not sparse or not config.num_experts:
        return _with_mlp(config, layer, config.intermediate_size)
    return _with_mlp(config, layer, config.num_experts_per_tok * config.moe_intermediate_size, config.num_experts)


def _llama4(config: Any, number: int) -> DecoderLayer:
    layer = _attention(config, number)
    if number not in config.moe_layers:
        return _with_mlp(config, layer, config.intermediate_size_mlp)
    wide = (config.num_experts_per_tok + 1) * config.intermediate_size  # one expert is shared
    return _with_mlp(config, layer, wide, config.num_local_experts)


def _step3p7(config: Any, number: int) -> DecoderLayer:
    sliding = config.layer_types[number] == "sliding_attention"
    heads = config.num_sliding_attention_heads if sliding else config.num_attention_heads
    gates = heads if config.gating is True or config.gating == "per-head" else heads * config.head_dim
    layer = _attention(config, number, heads, gates)
    if config.mlp_layer_types[number] == "dense":
        return _with_mlp(config, layer, config.intermediate_size)
    wide = config.num_experts_per_tok * config.moe_intermediate_size + config.share_expert_dim
    return _with_mlp(config, layer, wide, config.n_routed_experts)


def _lfm2(config: Any, number: int) -> DecoderLayer:
    wide, d = config.intermediate_size, config.hidden_size
    if config.block_auto_adjust_ff_dim:
        wide = int(2 * wide / 3)
        if config.block_ffn_dim_multiplier is not None:
            wide = int(config.block_ffn_dim_multiplier * wide)
            wide = config.block_multiple_of * -(-wide // config.block_multiple_of)
    if config.layer_types[number] != "conv":
        return _with_mlp(config, _attention(config, number), wide)
    taps = config.conv_L_cache
    return _with_mlp(config, {"weights": 4 * d * d, "state": d * taps, "convolution": (d, taps)}, wide)


def _qwen3_5(config: Any, number: int) -> DecoderLayer:
    return _with_mlp(config, _mixer(config, number), config.intermediate_size)


def _qwen3_5_moe(config: Any, number: int) -> DecoderLayer:
    wide = config.num_experts_per_tok * config.moe_intermediate_size + config.shared_expert_intermediate_size
    return _with_mlp(config, _mixer(config, number), wide, config.num_experts + 1)  # and what gates the shared expert


def _mixer(config: Any, number: int) -> dict[str, Any]:
    """Fields of a layer of Qwen3.5: gated attention, or the gated delta rule."""
    if config.layer_types[number] != "linear_attention":
        heads, _, head_dim = heads_of(config)
        return _attention(config, number, gates=heads * head_dim)
    keys, values = config.linear_key_head_dim, config.linear_value_head_dim
    heads = config.linear_num_value_heads
    channels = 2 * config.linear_num_key_heads * keys + heads * values
    return {
        "weights": config.hidden_size * (channels + 2 * heads * values + 2 * heads),  # z and the output; b and a
        "state": heads * keys * values + channels * config.linear_conv_kernel_dim,
        "convolution": (channels, config.linear_conv_kernel_dim),
        "recurrence": DeltaRule(heads, keys, values),
    }


def _routed(config: Any, number: int, layer: dict[str, Any]) -> DecoderLayer:
    """A layer of GLM's or DeepSeek's: the first ones are dense, the others have experts, some of them shared."""
    if number < config.first_k_dense_replace:
        return _with_mlp(config, layer, config.intermediate_size)
    wide = (config.num_experts_per_tok + config.n_shared_experts) * config.moe_intermediate_size
    return _with_mlp(config, layer, wide, config.n_routed_experts)


def _glm4v_moe(config: Any, number: int) -> DecoderLayer:
    return _routed(config, number, _attention(config, number))


def _deepseek_v3(config: Any, number: int) -> DecoderLayer:
    d, heads, values = config.hidden_size, config.num_attention_heads, config.v_head_dim
    keys = config.qk_nope_head_dim + config.qk_rope_head_dim
    short, queries = config.kv_lora_rank, config.q_lora_rank
    weights = d * heads * keys if queries is None else queries * (d + heads * keys)
    layer = {
        "weights": weights + d * (short + config.qk_rope_head_dim) + heads * values * d,
        "expansion": short * heads * (config.qk_nope_head_dim + values),
        "attention": heads * (keys + values) // 2,
        "cache": short + config.qk_rope_head_dim,
    }
    return _routed(config, number, layer)


def _ernie4_5_vl_moe(config: Any, number: int) -> DecoderLayer:
    layer = _attention(config, number)
    if config.mlp_layer_types[number] != "sparse":
        return _with_mlp(config, layer, config.intermediate_size)
    text, visual = config.moe_intermediate_size  # each kind of token has experts of its own
    active, shared = config.num_experts_per_tok, config.moe_num_shared_experts
    layer["visual"] = 3 * config.hidden_size * active * (visual - text)
    return _with_mlp(config, layer, (active + shared) * text, config.num_experts)


PLAIN: tuple[str, ...] = ("llama", "mistral", "qwen2", "qwen3", "cohere", "cohere2", "granite", "granite4_vision_text")
PLAIN += ("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "glm4v_text", "glm_ocr_text", "paddleocr_vl_text")
PLAIN += ("exaone4", "hyperclovax", "cohere_compass_text")
READERS: dict[str, Callable[[Any, int], DecoderLayer]] = {
    **dict.fromkeys(PLAIN, _plain),
    **dict.fromkeys(("qwen3_moe", "qwen3_vl_moe_text"), _qwen3_moe),
    "llama4_text": _llama4,
    "step3p5": _step3p7,
    "lfm2": _lfm2,
    "qwen3_5_text": _qwen3_5,
    "qwen3_5_moe_text": _qwen3_5_moe,
    "glm4v_moe_text": _glm4v_moe,
    "deepseek_v3": _deepseek_v3,
    "ernie4_5_vl_moe_text": _ernie4_5_vl_moe,
}
"""By `model_type` of the language model's configuration."""
