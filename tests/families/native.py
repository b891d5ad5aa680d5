"""Families whose images keep their resolution: Qwen's and GLM's, PaddleOCR-VL, ERNIE 4.5 VL, Kimi K2.5, Mistral 3.

A token is 2 x 2 patches of 4 px, so 8 px a side: pictures of up to 112 px a side are one window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import Ernie4_5_VLMoeImageProcessorPil
from transformers.models.ernie4_5_vl_moe.processing_ernie4_5_vl_moe import Ernie4_5_VLMoeProcessor
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil
from transformers.models.kimi_k25.processing_kimi_k25 import Kimi_K25Processor
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import PaddleOCRVLImageProcessorPil
from transformers.models.paddleocr_vl.processing_paddleocr_vl import PaddleOCRVLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from families.native_stand_ins import KimiPatches, PixtralPrompts
from families.tagged import unchecked
from tiny import Tiny, finished, tokenizer

PATCH, TOKEN = 4, 8
"""px a side."""
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
VISION = {"depth": 3, "hidden_size": 32, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": 2}
TOWER = {**VISION, "intermediate_size": 64, "out_hidden_size": 64}
LAYERED = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": PATCH,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1}
RECURRENT = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}
PIXELS = {"patch_size": PATCH, "merge_size": 2, "size": {"shortest_edge": 2 * TOKEN**2, "longest_edge": 10**6}}
QWEN = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
GLM = {
    "image_token": "<|image|>",
    "video_token": "<|video|>",
    "image_start_token": "<|begin_of_image|>",
    "image_end_token": "<|end_of_image|>",
    "video_start_token": "<|begin_of_video|>",
    "video_end_token": "<|end_of_video|>",
}


def text_of(tok: Any, **more: Any) -> dict[str, Any]:
    return {**TEXT, "vocab_size": len(tok), "pad_token_id": tok.pad_token_id, "rope_parameters": MROPE, **more}


def ids(tok: Any, named: dict[str, str]) -> dict[str, int]:
    """Ids of special tokens under the names that configurations give them."""
    return {f"{name}_id": tok.convert_tokens_to_ids(token) for name, token in named.items()}


def model_of(kind: str, tok: Any, vision: dict[str, Any], text: dict[str, Any], **more: Any) -> Any:
    """A random model of that class, whose answers hold neither image nor video placeholders."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vision_config=vision, text_config=text, **more)
    model = finished(getattr(transformers, f"{kind}ForConditionalGeneration")(config), tok)
    model.generation_config.suppress_tokens = [more["image_token_id"], more.get("video_token_id", 0)]
    return model


def qwen(kind: str, processor: str, vision: dict[str, Any], **text: Any) -> Tiny:
    tok = tokenizer(*QWEN.values(), named=QWEN)
    images = Qwen2VLImageProcessorPil(temporal_patch_size=2, **PIXELS)
    ready = unchecked(getattr(transformers, f"{processor}Processor"), images, tok, None)
    model = model_of(kind, tok, vision, text_of(tok, **text), **ids(tok, QWEN))
    return Tiny(model, ready, "<|vision_start|><|image_pad|><|vision_end|>")


def qwen2_vl() -> Tiny:
    vision = {"depth": 3, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": PATCH, "mlp_ratio": 2}
    return qwen("Qwen2VL", "Qwen2VL", vision)


def qwen2_5_vl() -> Tiny:
    """Only the middle layer sees the whole image; the others windows of 2 x 2 tokens."""
    return qwen("Qwen2_5_VL", "Qwen2_5_VL", {**TOWER, "window_size": 2 * TOKEN, "fullatt_block_indexes": [1]})


def qwen3_vl() -> Tiny:
    vision = {**TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    return qwen("Qwen3VL", "Qwen3VL", vision, head_dim=16)


def qwen3_vl_moe() -> Tiny:
    vision = {**TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    return qwen("Qwen3VLMoe", "Qwen3VL", vision, head_dim=16, **EXPERTS)


QWEN3_5 = {"head_dim": 16, "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0, "mrope_interleaved": True}}


def qwen3_5() -> Tiny:
    """Two recurrent layers and one of full attention."""
    return qwen("Qwen3_5", "Qwen3VL", {**TOWER, "num_position_embeddings": 64}, **QWEN3_5, **RECURRENT)


def qwen3_5_moe() -> Tiny:
    text = {**QWEN3_5, **RECURRENT, **EXPERTS, "shared_expert_intermediate_size": 32}
    return qwen("Qwen3_5Moe", "Qwen3VL", {**TOWER, "num_position_embeddings": 64}, **text)


def glm(kind: str, images: Any, processor: str, **text: Any) -> Tiny:
    tok = tokenizer(*GLM.values(), named=GLM)
    ready = unchecked(getattr(transformers, processor), images(temporal_patch_size=2, **PIXELS), tok, None)
    text = text_of(tok, rope_parameters={**MROPE, "partial_rotary_factor": 1.0}, **text)
    model = model_of(kind, tok, {**TOWER, "image_size": 32}, text, **ids(tok, GLM))
    return Tiny(model, ready, "<|begin_of_image|><|image|><|end_of_image|>")


def glm4v() -> Tiny:
    return glm("Glm4v", Glm4vImageProcessorPil, "Glm4vProcessor")


def glm4v_moe() -> Tiny:
    experts = {**ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 16}
    return glm("Glm4vMoe", Glm4vImageProcessorPil, "Glm4vProcessor", **experts)


def glm46v() -> Tiny:
    return glm("Glm46V", Glm46VImageProcessorPil, "Glm46VProcessor")


def glm_ocr() -> Tiny:
    return glm("GlmOcr", Glm46VImageProcessorPil, "Glm46VProcessor", head_dim=16)


def paddleocr_vl() -> Tiny:
    """A SigLIP tower, which reads patches row by row."""
    tok = tokenizer(*QWEN.values(), named=QWEN)
    ready = unchecked(PaddleOCRVLProcessor, PaddleOCRVLImageProcessorPil(**PIXELS), tok)
    vision = {**LAYERED, "image_size": 32}
    model = model_of("PaddleOCRVL", tok, vision, text_of(tok, head_dim=16), **ids(tok, QWEN))
    return Tiny(model, ready, "<|vision_start|><|image_pad|><|vision_end|>")


def ernie4_5_vl_moe() -> Tiny:
    """Its experts are chosen by the kind of a token, which the processor tells."""
    tok = tokenizer(*GLM.values(), named=GLM)
    ready = unchecked(Ernie4_5_VLMoeProcessor, Ernie4_5_VLMoeImageProcessorPil(**PIXELS), tok, None)
    experts = {"moe_intermediate_size": [32, 16], "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1}
    text = text_of(tok, rope_parameters={**MROPE, "mrope_section": [3, 3, 2]}, **experts)
    vision = {"depth": 3, "hidden_size": 32, "num_heads": 2, "patch_size": PATCH, "intermediate_size": 64}
    model = model_of("Ernie4_5_VLMoe", tok, vision, text, **ids(tok, GLM))
    return Tiny(model, ready, "<|begin_of_image|><|image|><|end_of_image|>")


def kimi_k25() -> Tiny:
    """Plain positions, patches row by row. The real processor around a stand-in for its image processor."""
    tok = tokenizer(*QWEN.values(), named=QWEN)
    ready = unchecked(Kimi_K25Processor, KimiPatches(PATCH, 2), tok, None)
    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    text = {**text_of(tok), **latent, **ROUTED, "first_k_dense_replace": 1, "num_key_value_heads": 4}
    del text["rope_parameters"]
    vision = {**LAYERED, "pos_emb_height": 16, "pos_emb_width": 16}
    text = {"model_type": "deepseek_v3", **text}
    model = model_of("Kimi_K25", tok, vision, text, projection_hidden_size=32, **ids(tok, QWEN))
    return Tiny(model, ready, "<|vision_start|><|image_pad|><|vision_end|>")


def mistral3() -> Tiny:
    """Plain positions, padded images, a token after each line; a stand-in around the real image processor."""
    tok = tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    text = {"model_type": "mistral", **text_of(tok, head_dim=16, sliding_window=None)}
    del text["rope_parameters"]
    vision = {"model_type": "pixtral", **LAYERED, "image_size": 256}
    image = tok.convert_tokens_to_ids("[IMG]")
    model = model_of("Mistral3", tok, vision, text, spatial_merge_size=2, image_token_id=image)
    return Tiny(model, PixtralPrompts(tok, TOKEN), "[IMG]")


NATIVE: dict[str, Callable[[], Tiny]] = {
    family.__name__: family
    for family in (
        qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe, qwen3_5, qwen3_5_moe, glm4v, glm4v_moe, glm46v, glm_ocr,
        paddleocr_vl, ernie4_5_vl_moe, kimi_k25, mistral3,
    )
}  # fmt: skip
