"""More families whose images keep their resolution, as in `families.native`: a token is 8 px a side, in Gemma 4 it is 12."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers.models.cohere_compass.image_processing_pil_cohere_compass import CohereCompassImageProcessorPil
from transformers.models.cosmos3_edge.image_processing_pil_cosmos3_edge import Cosmos3EdgeImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.glm5_next.image_processing_pil_glm5_next import Glm5NextImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.video_llama_3.image_processing_pil_video_llama_3 import VideoLlama3ImageProcessorPil

from families.native import EXPERTS, GLM, LAYERED, MROPE, PATCH, PIXELS, QWEN, TOKEN, TOWER, ids, model_of, text_of
from families.native_more_stand_ins import LargePatches, RowsOfPatches
from families.native_stand_ins import PixtralPrompts
from families.tagged import unchecked
from tiny import Tiny, finished, tokenizer

WINDOWED = {**TOWER, "window_size": 2 * TOKEN, "fullatt_block_indexes": [1]}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 4}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
INDEXED = {"index_topk": 4096, "index_head_dim": 16, "index_n_heads": 2}
"""An indexer that finds room for every token: what it would leave out is not this project's business."""


def plain(tok: Any, **more: Any) -> dict[str, Any]:
    """The language model of a family without M-RoPE."""
    text = text_of(tok, **more)
    if "rope_parameters" not in more:
        del text["rope_parameters"]
    return text


def family(
    kind: str,
    vision: dict[str, Any],
    text: Callable[[Any], dict[str, Any]],
    images: Any = None,
    processor: str | None = None,
    named: dict[str, str] = QWEN,
    tag: str = "<|vision_start|><|image_pad|><|vision_end|>",
    **config: Any,
) -> Tiny:
    """A tiny model and the real processor around `images`, those of Qwen2-VL where not given."""
    tok = tokenizer(*dict.fromkeys(named.values()), named=named)
    images = images or Qwen2VLImageProcessorPil(temporal_patch_size=2, **PIXELS)
    make = getattr(transformers, f"{processor or kind}Processor")
    ready = unchecked(make, image_processor=images, tokenizer=tok, video_processor=None)
    return Tiny(model_of(kind, tok, vision, text(tok), **ids(tok, named), **config), ready, tag)


def exaone4_5() -> Tiny:
    text = {"model_type": "exaone4", "sliding_window": 4096, "head_dim": 16}
    return family("Exaone4_5_", {**WINDOWED, "num_key_value_heads": 1}, lambda tok: plain(tok, **text))


def glm5_next() -> Tiny:
    """A recurrent layer, and one of attention over an index."""
    text = {**LATENT, **ROUTED, **INDEXED, "linear_head_dim": 16, "linear_num_heads": 4, "hc_mult": 2}
    text |= {"layer_types": ["linear_attention", "linear_attention", "indexed_attention"]}
    return family(
        "Glm5Next",
        {**TOWER, "image_size": 32, "projection_intermediate_size": 64},
        lambda tok: plain(tok, **text),
        Glm5NextImageProcessorPil(temporal_patch_size=2, min_image_tokens=1, **PIXELS),
        named=GLM,
        tag="<|begin_of_image|><|image|><|end_of_image|>",
    )


def cohere_compass() -> Tiny:
    """Deepstack, and layers with and without a sliding window."""
    named = {**QWEN, "image_token": "<|IMAGE_PAD|>", "video_token": "<|VIDEO_PAD|>"}
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    text = {"layer_types": kinds, "rope_parameters": dict.fromkeys(kinds, MROPE), "logit_scale": 0.5}
    return family(
        "CohereCompass",
        {**TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        lambda tok: text_of(tok, **text),
        CohereCompassImageProcessorPil(temporal_patch_size=2, **PIXELS),
        named=named,
        tag="<|vision_start|><|IMAGE_PAD|><|vision_end|>",
    )


def lighton_ocr() -> Tiny:
    """Images of whole patches, so that a row or a column of patches may belong to no token."""
    named = {"image_token": "[IMG]", "image_break_token": "[BREAK]", "image_end_token": "[END]"}
    tok = tokenizer(*named.values(), named=named)
    images = PixtralImageProcessorPil(patch_size={"height": PATCH, "width": PATCH})
    ready = unchecked(transformers.LightOnOcrProcessor, images, tok, patch_size=PATCH, spatial_merge_size=2)
    vision = {"model_type": "pixtral", **LAYERED, "image_size": 256}
    text = {"model_type": "qwen3", **plain(tok, head_dim=16)}
    more = {"image_token_id": tok.convert_tokens_to_ids("[IMG]"), "tie_word_embeddings": False}
    return Tiny(model_of("LightOnOcr", tok, vision, text, **more), ready, "[IMG]")


GEMMA = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}


def gemma(kind: str, images: Any, vision: dict[str, Any], **text: Any) -> Tiny:
    """Tokens of an image see one another; some layers slide."""
    tok = tokenizer(*GEMMA.values(), "<|video|>", named=GEMMA)
    ready = unchecked(getattr(transformers, f"{kind}Processor"), None, images, tok, None)
    layers = ["sliding_attention", "full_attention", "full_attention"]
    text = {"head_dim": 16, "global_head_dim": 16, "sliding_window": 4096, "layer_types": layers, **text}
    text = plain(tok, use_bidirectional_attention="vision", tie_word_embeddings=False, **text)
    more = {**ids(tok, GEMMA), "video_token_id": tok.convert_tokens_to_ids("<|video|>"), "tie_word_embeddings": False}
    model = model_of(kind, tok, vision, text, audio_config=None, **more)
    model.generation_config.suppress_tokens.append(more["audio_token_id"])  # which would be read as padding
    return Tiny(model, ready, "<|image|>", nested=True)


def gemma4() -> Tiny:
    """140 tokens per image at most, which the processor comes near to."""
    images = Gemma4ImageProcessorPil(patch_size=PATCH, max_soft_tokens=140)
    vision = {**LAYERED, "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 256}
    per_layer = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 400}
    return gemma("Gemma4", images, vision, **per_layer)


def gemma4_unified() -> Tiny:
    """No tower. The real processor around a stand-in for its image processor, which needs torchvision."""
    vision = {"patch_size": PATCH, "mm_embed_dim": 48, "mm_posemb_size": 256, "output_proj_dims": 48}
    return gemma("Gemma4Unified", LargePatches(3 * PATCH), vision)


def lfm3_vl() -> Tiny:
    """A tower of convolutions but for one layer."""
    vision = {**LAYERED, "num_key_value_heads": 1, "layer_types": ["conv", "full_attention", "conv"]}
    return family(
        "Lfm3Vl", vision, lambda tok: plain(tok, model_type="lfm3"), projector_hidden_size=64, tie_word_embeddings=False
    )


def minimax_m3_vl() -> Tiny:
    """A layer with an index of blocks. Qwen2-VL's image processor stands in for its own, which needs torchvision."""
    named = {"image_token": "]<]image[>[", "video_token": "]<]video[>["}
    tok = tokenizer(*named.values(), "]<]start of image[>[", "]<]end of image[>[", named=named)
    images = Qwen2VLImageProcessorPil(temporal_patch_size=2, **PIXELS)
    ready = unchecked(transformers.MiniMaxM3VLProcessor, images, tok, None)
    text = plain(tok, head_dim=16, rotary_dim=8, dense_intermediate_size=64, shared_intermediate_size=32)
    text |= {"num_local_experts": 4, "num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse", "dense"]}
    text |= {"layer_types": ["full_attention", "minimax_m3_sparse", "full_attention"], "index_block_size": 1024}
    text |= {"index_n_heads": 2, "index_head_dim": 16}
    vision = {**LAYERED, "hidden_size": 64, "image_size": 128}
    config = transformers.MiniMaxM3VLConfig(vision_config=vision, text_config=text, projector_hidden_size=64)
    config.image_token_id, config.video_token_id = ids(tok, named).values()
    torch.manual_seed(0)
    model = finished(transformers.MiniMaxM3SparseForConditionalGeneration(config), tok)
    model.generation_config.suppress_tokens = list(ids(tok, named).values())
    return Tiny(model, ready, "]<]image[>[")


def video_llama_3() -> Tiny:
    """A token per patch, of 8 px a side."""
    images = VideoLlama3ImageProcessorPil(patch_size=TOKEN, merge_size=1, size=PIXELS["size"])
    return family("VideoLlama3", {**LAYERED, "patch_size": TOKEN}, lambda tok: plain(tok, model_type="qwen2"), images)


def hyperclovax_vision_v2() -> Tiny:
    vision = {"model_type": "qwen2_5_vl_vision", **WINDOWED}
    return family(
        "HyperCLOVAXVisionV2", vision, lambda tok: plain(tok, model_type="hyperclovax"), tie_word_embeddings=False
    )


def cosmos3_omni() -> Tiny:
    vision = {
        **TOWER,
        "model_type": "qwen3_vl_vision",
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    return family(
        "Cosmos3Omni", vision, lambda tok: text_of(tok, model_type="qwen3_vl_text", head_dim=16), None, "Qwen3VL"
    )


def cosmos3_edge() -> Tiny:
    images = Cosmos3EdgeImageProcessorPil(**PIXELS)
    tiny = family(
        "Cosmos3Edge",
        {**LAYERED, "num_patches": 64},
        lambda tok: text_of(tok, head_dim=16),
        images,
        projector_hidden_size=64,
    )
    tiny.processor.return_mm_token_type_ids = True  # which the model asks for
    return tiny


def muse_glimmer() -> Tiny:
    """Windows of 4 x 4 patches but in one layer. The real processor around a stand-in for its image processor."""
    named = {"image_token": "<|patch|>", "video_token": "<|video|>"}
    kinds = ["window_attention", "full_attention", "window_attention"]
    text = {"head_dim": 16, "sliding_window": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    return family(
        "MuseGlimmer",
        {**LAYERED, "pos_emb_height": 4, "pos_emb_width": 4, "layer_types": kinds},
        lambda tok: plain(tok, **text),
        RowsOfPatches(PATCH, 2),
        named={**named, "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>"},
        tag="<|patch|>",
        out_hidden_size=128,
        projector_hidden_size=64,
    )


def qwen4_exp() -> Tiny:
    """Recurrent layers, one with embeddings of runs of ids, and a layer of attention over an index."""
    text = {**EXPERTS, "shared_expert_intermediate_size": 32, "hc_count": 2, "hc_lowrank": 8, "ple_layer_ids": [1]}
    text |= {"ngram_vocab_size_base": 97, "heads_per_ngram": 2, "split_ngram_parts": 1, "indexer_n_heads": 2}
    text |= {"indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 4096, "indexer_compress_ratio": 4}
    text |= {f"linear_num_{name}_heads": count for name, count in (("key", 2), ("value", 4))}
    text |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "head_dim": 16, "eos_token_id": 2}
    text |= {"layer_types": ["linear_attention", "linear_attention", "full_attention"]}
    text |= {"rope_parameters": {**MROPE, "partial_rotary_factor": 1.0, "mrope_interleaved": True}}
    vision = {**TOWER, "num_position_embeddings": 64}
    return family("Qwen4Exp", vision, lambda tok: text_of(tok, **text), None, "Qwen3VL")


def mistral_large4() -> Tiny:
    """As Mistral 3, before a language model of its own."""
    tok = tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    text = plain(tok, **{**LATENT, "qk_nope_head_dim": 8}, **ROUTED, **INDEXED, qk_rope_head_dim=8)
    del text["q_lora_rank"]
    vision = {"model_type": "pixtral", **LAYERED, "image_size": 256}
    image = tok.convert_tokens_to_ids("[IMG]")
    return Tiny(model_of("MistralLarge4", tok, vision, text, image_token_id=image), PixtralPrompts(tok, TOKEN), "[IMG]")


def dots3_note() -> Tiny:
    named = {"image_token": "<|imgpad|>", "video_token": "<|video_pad|>", "audio_token": "<|audio_comp_pad|>"}
    kinds = ["dense", "dense", "sparse"]
    vision = {**LAYERED, "adapter_in_dim": 32, "adapter_out_dim": 64, "mlp_layer_types": kinds, "num_local_experts": 4}
    audio = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    audio |= {"adapter_input_size": 32, "adapter_out_dim": 64, "feature_size": 16, "downsample_hidden_size": 8}
    text = {**LATENT, **ROUTED, **INDEXED, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "use_sliding_window": False}
    return family(
        "Dots3Note",
        {**vision, "moe_intermediate_size": 32},
        lambda tok: plain(tok, **text, shared_experts_intermediate_size=32),
        Qwen2VLImageProcessorPil(temporal_patch_size=1, **PIXELS),
        named=named,
        tag="<|imgpad|>",
        audio_config=audio,
    )


MORE: dict[str, Callable[[], Tiny]] = {
    make.__name__: make
    for make in (
        exaone4_5, glm5_next, cohere_compass, lighton_ocr, gemma4, gemma4_unified, lfm3_vl, minimax_m3_vl, video_llama_3,
        hyperclovax_vision_v2, cosmos3_omni, cosmos3_edge, muse_glimmer, qwen4_exp, mistral_large4, dots3_note,
    )
}  # fmt: skip
