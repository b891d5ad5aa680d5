"""MiniCPM-V 4.7: views as those of MiniCPM-V 4.6, numbered by their places on one canvas per image."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from transformers import MiniCPMV4_7Config, MiniCPMV4_7ForConditionalGeneration, MiniCPMV4_7Processor, Qwen3_5TextConfig
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil
from transformers.models.minicpmv4_7.configuration_minicpmv4_7 import MiniCPMV4_7VisionConfig

from families.native import MROPE
from families.tagged import TEXT, unchecked
from families.unequal import VISION
from tiny import Tiny, finished, tokenizer

MARKS = {
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
}


def minicpmv4_7() -> Tiny:
    """Up to 16 tokens per view, 4 x 4 patches each. Layers of full attention alone, so that holes in a mask drop tokens."""
    torch.manual_seed(0)
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", **MARKS}
    named |= {"image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>"}
    tok = tokenizer(*named.values(), named=named)
    images = MiniCPMV4_6ImageProcessorPil(scale_resolution=112, patch_size=7)
    videos = SimpleNamespace(slice_mode=False, downsample_mode="16x", model_input_names=())
    number = tok.convert_tokens_to_ids
    config = MiniCPMV4_7Config(
        vision_config=MiniCPMV4_7VisionConfig(**VISION, image_size=112, patch_size=7),
        text_config=Qwen3_5TextConfig(
            vocab_size=len(tok),
            pad_token_id=tok.pad_token_id,
            layer_types=["full_attention"] * 3,
            head_dim=16,
            rope_parameters={**MROPE, "partial_rotary_factor": 1.0, "mrope_interleaved": True},
            **TEXT,
        ),
        insert_layer_id=1,
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        newline_id=tok("\n").input_ids[0],
        **{name.replace("token", "id"): number(mark) for name, mark in MARKS.items()},
    )
    model = finished(MiniCPMV4_7ForConditionalGeneration(config), tok)
    return Tiny(model, unchecked(MiniCPMV4_7Processor, images, videos, tok), "<|image_pad|>")
