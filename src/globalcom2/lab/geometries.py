"""Configurations by name, as published: what an estimate needs, and nothing to download."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, LlavaNextConfig, Qwen2_5_VLConfig, Qwen3VLConfig


def named_configs() -> dict[str, Any]:
    """Configurations that need no download: LLaVA-NeXT 7B and 13B, which the paper measured, and two small ones for a CPU."""

    def llama(width: int, wide: int, layers: int, heads: int) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=32064,
            hidden_size=width,
            intermediate_size=wide,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=8192,
        )

    small_tower = {
        "model_type": "clip_vision_model",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "image_size": 336,
        "patch_size": 14,
    }
    return {
        "llava-next-13b": LlavaNextConfig(text_config=llama(5120, 13824, 40, 40)),
        "llava-next-7b": LlavaNextConfig(text_config=llama(4096, 11008, 32, 32)),
        "llava-next-500m": LlavaNextConfig(text_config=llama(768, 2048, 12, 12)),
        "llava-next-86m": LlavaNextConfig(text_config=llama(512, 1376, 8, 8), vision_config=small_tower),
    }


def native_configs() -> dict[str, Any]:
    """Configurations of native families that need no download, as published: for costs alone."""
    seven = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    }
    eight = {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    }
    windowed = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    deep = {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "out_hidden_size": 4096,
        "patch_size": 16,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
    }
    return {
        "qwen2.5-vl-7b": Qwen2_5_VLConfig(text_config=seven, vision_config=windowed),
        "qwen3-vl-8b": Qwen3VLConfig(text_config=eight, vision_config=deep),
    }
