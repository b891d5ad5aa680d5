"""What a call costs, in closed form: floating-point operations, key-value cache, activations.

Operations are those of matrix products, counted as torch's counter does: one multiply-add is two. Softmax, norms and
activations are left out (under 1 % at these sizes). Attention is counted in full; `masked_flops` gives the half of it
that causal kernels skip. Tests compare every formula with `torch.utils.flop_counter.FlopCounterMode`. Configurations are
transformers' own objects; nothing is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from globalcom2.hf.inside import Drops
from globalcom2.lab.decoders import DecoderLayer, decoder_layers

ALL_LOGITS = ("minicpmv4_6",)
"""Families whose models make logits of the whole prompt in transformers, not of its last token alone."""


Tokens = int | Sequence[int]
"""Tokens that a language model reads; a sequence has a number for each layer, where some leave on the way."""


def call_prefill_flops(config: Any, tokens: int, visual: int = 0, drops: Drops | None = None) -> int:
    """`prefill_flops` of a model's call, with as many logits as its family makes.

    Args:
        config: The whole model's configuration.
        tokens: Length of the prompt, text and visual tokens.
        visual: How many of them are visual.
        drops: When visual tokens leave inside the language model; None where none do.
    """
    text = config.get_text_config()
    by_layer = tokens_by_layer(text, tokens, visual, drops)
    total = prefill_flops(text, by_layer, by_layer[-1] if config.model_type in ALL_LOGITS else 1)
    words = tokens - visual
    total += sum(2 * layer.visual * (own - words) for layer, own in _each(text, by_layer))
    return total + (0 if drops is None else ranking_flops(text, by_layer, drops))


def tokens_by_layer(config: Any, tokens: int, visual: int, drops: Drops | None) -> list[int]:
    """Tokens of a prompt that each layer of a language model reads, see `call_prefill_flops`; `config` is its own."""
    layers = config.num_hidden_layers
    if drops is None:
        return [tokens] * layers
    return [tokens - visual + left for left in drops.by_layer(visual, layers)]


def ranking_flops(config: Any, tokens: Sequence[int], drops: Drops) -> int:
    """The rows of attention that decide which visual tokens leave."""
    layers = decoder_layers(config)
    return sum(2 * layers[before - 1].attention * tokens[before - 1] for before in drops.layers)


def prefill_flops(config: Any, tokens: Tokens, logits: int = 1) -> int:
    """The language model reading `tokens` prompt tokens.

    Args:
        config: A language model's configuration, `model.config.get_text_config()`.
        tokens: Length of the prompt, text and visual tokens; of each layer, where some leave on the way.
        logits: Tokens, from the last one on, whose logits are made.

    Raises:
        UnsupportedModelError: A kind of language model that `decoder_layers` does not know; all functions here that take
            a language model's configuration raise it.
    """
    layers = sum(_layer_flops(layer, own, own) for layer, own in _each(config, tokens))
    return layers + logits * _logits_flops(config)


def masked_flops(config: Any, tokens: Tokens) -> int:
    """The part of `prefill_flops` that causal kernels (sdpa, flash) skip: attention of a query to later keys."""
    return sum(4 * layer.attention * (own * (own - 1) // 2) for layer, own in _each(config, tokens))


def decode_flops(config: Any, tokens: Tokens) -> int:
    """The language model generating one token after `tokens` cached ones."""
    return sum(_layer_flops(layer, 1, own + 1) for layer, own in _each(config, tokens)) + _logits_flops(config)


def _each(config: Any, tokens: Tokens) -> list[tuple[DecoderLayer, int]]:
    """The layers with the tokens that each reads."""
    layers = decoder_layers(config)
    return list(zip(layers, [tokens] * len(layers) if isinstance(tokens, int) else tokens, strict=True))


def _logits_flops(config: Any) -> int:
    return int(2 * config.hidden_size * config.vocab_size)


def _layer_flops(layer: DecoderLayer, queries: int, keys: int) -> int:
    channels, taps = layer.convolution
    padded = queries + taps - 1 if queries > 1 else 0  # on the left; one token is added up
    total = 2 * queries * layer.weights + 4 * queries * keys * layer.attention + 2 * channels * taps * padded
    total += 2 * keys * layer.expansion
    return total + (layer.recurrence.flops(queries) if layer.recurrence else 0)


def prefill_flops_llm_viewer(config: Any, tokens: int) -> int:
    """The language model reading `tokens` visual tokens, counted as LLM-Viewer does: element-wise work too, no logits.

    The paper used LLM-Viewer.

    Source: LLM-Viewer (https://arxiv.org/abs/2402.16363), weights of softmax, norms and additions as inferred from its
    figures; agrees with the paper's ten TFLOPs figures within 0.06.
    """
    d, heads = config.hidden_size, config.num_attention_heads
    attending = sum(layer.attention > 0 for layer in decoder_layers(config))
    matrices = sum(_layer_flops(layer, tokens, tokens) for layer in decoder_layers(config))
    return int(matrices + attending * 5 * heads * tokens * tokens + config.num_hidden_layers * 18 * tokens * d)


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


def kv_cache_bytes(config: Any, tokens: Tokens, bytes_per_value: int = 2) -> int:
    """Keys and values of `tokens` tokens in all layers, and the states of recurrent ones."""
    values = 0
    for layer, own in _each(config, tokens):
        kept = own if layer.window is None else min(own, layer.window)
        values += layer.cache * kept + layer.state
    return int(values * bytes_per_value)


def activation_bytes(config: Any, tokens: int, bytes_per_value: int = 2) -> int:
    """Largest working set of one prefill layer: the residual and its norm, and the gated MLP's three wide tensors.

    An estimate for kernels that keep no attention matrix (sdpa, flash); allocators add to it.
    """
    wide = max(layer.wide for layer in decoder_layers(config))
    return int(tokens * (2 * config.hidden_size + 3 * wide) * bytes_per_value)


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, (list, tuple)) else size)
