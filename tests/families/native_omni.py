"""Native-resolution families that read sound too: the thinkers of Qwen's Omni models, and Nemotron H Omni."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from families.native import EXPERTS, LAYERED, PATCH, PIXELS, QWEN, TOWER, ids, model_of, text_of
from families.native_more import WINDOWED, plain
from families.native_more_stand_ins import PackedPatches
from families.tagged import unchecked
from tiny import Tiny, finished, tokenizer


def thinker(kind: str, vision: dict[str, Any], audio: dict[str, Any], **text: Any) -> Tiny:
    """Qwen2-VL's processor, which writes images as those of the Omni models do."""
    tok = tokenizer(*QWEN.values(), "<|audio|>", "<|sound|>", named=QWEN)
    images = Qwen2VLImageProcessorPil(temporal_patch_size=2, **PIXELS)
    ready = unchecked(transformers.Qwen2VLProcessor, images, tok, None)
    ready.return_mm_token_type_ids = False
    more = {f"audio_{name}_id": tok.convert_tokens_to_ids("<|audio|>") for name in ("token", "start_token")}
    more["audio_start_token_id"] += 1
    model = model_of(kind, tok, vision, text_of(tok, **text), audio_config=audio, **ids(tok, QWEN), **more)
    return Tiny(model, ready, "<|vision_start|><|image_pad|><|vision_end|>")


SOUND = {"num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 32}


def qwen2_5_omni_thinker() -> Tiny:
    return thinker("Qwen2_5OmniThinker", WINDOWED, {**SOUND, "output_dim": 64})


def qwen3_omni_moe_thinker() -> Tiny:
    vision = {**TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    sound = {**SOUND, "output_dim": 64, "downsample_hidden_size": 16}
    return thinker("Qwen3OmniMoeThinker", vision, sound, head_dim=16, **EXPERTS)


def nemotron_h_omni() -> Tiny:
    """A recurrent layer, one of attention and one of experts; a tower that puts four tokens of its own before the patches.

    The real processor around a stand-in for its image processor, which needs torchvision.
    """
    named = {"image_token": "<image>", "video_token": "<video>"}
    tok = tokenizer(*named.values(), "<so_embedding>", "<so_start>", "<so_end>", "<img>", "</img>", named=named)
    ready = unchecked(
        transformers.NemotronH_Omni_Reasoning_V3Processor, image_processor=PackedPatches(PATCH, 2), tokenizer=tok
    )
    text = plain(tok, model_type="nemotron_h", layers_block_type=["mamba", "attention", "moe"], head_dim=16)
    text |= {"ssm_state_size": 16, "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "chunk_size": 16}
    text |= {"n_routed_experts": 4, "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32}
    vision = {"model_type": "radio", **LAYERED, "max_img_size": 128, "num_cls_tokens": 2, "num_registers": 2}
    vision |= {"video_temporal_patch_size": 2, "summary_idxs": [0]}
    sizes = {"vision_hidden_size": 32, "projector_hidden_size": 64}
    config = transformers.NemotronH_Omni_Reasoning_V3_Config(
        vision_config=vision, text_config=text, audio_config=None, **sizes, **ids(tok, named)
    )
    torch.manual_seed(0)
    model = finished(transformers.NemotronH_Omni_Reasoning_V3(config), tok)
    model.generation_config.suppress_tokens = list(ids(tok, named).values())
    return Tiny(model, ready, "<image>")


OMNI: dict[str, Callable[[], Tiny]] = {
    make.__name__: make for make in (qwen2_5_omni_thinker, qwen3_omni_moe_thinker, nemotron_h_omni)
}
