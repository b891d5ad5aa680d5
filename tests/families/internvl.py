"""Families that put the thumbnail last and keep the grid to themselves: InternVL, Qianfan-OCR, Cohere's, GOT-OCR 2."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    Cohere2Config,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    Cohere2VisionProcessor,
    GotOcr2Config,
    GotOcr2ForConditionalGeneration,
    GotOcr2Processor,
    GotOcr2VisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionConfig,
    QianfanOCRConfig,
    QianfanOCRForConditionalGeneration,
    QianfanOCRProcessor,
    QianfanOCRVisionConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from families.llava import TEXT, without_videos
from families.llava import VISION as LLAVA_VISION
from tiny import PATCH, Tiny, finished, tokenizer

VIEW = 112
VISION = {**LLAVA_VISION, "image_size": VIEW}
TOKENS = 16  # per view: 8 x 8 patches, shuffled 2 x 2
INTERNVIT = {**VISION, "image_size": (VIEW, VIEW), "patch_size": (PATCH, PATCH)}
INTERN_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def images(size: int = VIEW, **more: Any) -> GotOcr2ImageProcessorPil:
    return GotOcr2ImageProcessorPil(
        size={"height": size, "width": size}, crop_to_patches=True, min_patches=1, max_patches=6, **more
    )


def text(kind: Any, tok: Any, **more: Any) -> Any:
    return kind(vocab_size=len(tok), pad_token_id=tok.pad_token_id, tie_word_embeddings=False, **TEXT, **more)


def internvl(**vision: Any) -> Tiny:
    torch.manual_seed(0)
    tok = tokenizer(*INTERN_TOKENS.values(), named=INTERN_TOKENS)
    processor = without_videos(InternVLProcessor, images(), tok, image_seq_length=TOKENS)
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**{**INTERNVIT, "use_qk_norm": True, **vision}),
        text_config=text(Qwen2Config, tok),
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=TOKENS,
    )
    return Tiny(finished(InternVLForConditionalGeneration(config), tok), processor, "<IMG_CONTEXT>")


def qianfan_ocr() -> Tiny:
    torch.manual_seed(0)
    tok = tokenizer("<image>", *INTERN_TOKENS.values(), named=INTERN_TOKENS)
    processor = QianfanOCRProcessor(images(), tok, image_seq_length=TOKENS)
    config = QianfanOCRConfig(
        vision_config=QianfanOCRVisionConfig(**INTERNVIT),
        text_config=text(Qwen3Config, tok, head_dim=16),
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=TOKENS,
    )
    return Tiny(finished(QianfanOCRForConditionalGeneration(config), tok), processor, "<image>")


def cohere_text(tok: Any) -> Cohere2Config:
    return text(Cohere2Config, tok, layer_types=["sliding_attention", "sliding_attention", "full_attention"])


def siglip() -> SiglipVisionConfig:
    return SiglipVisionConfig(**VISION, vision_use_head=False)


def aya_vision() -> Tiny:
    """TILE_1 is several ids, as in the published tokenizer."""
    torch.manual_seed(0)
    tok = tokenizer("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "TILE", "TILE_GLOBAL")
    processor = AyaVisionProcessor(images(), tok, patch_size=PATCH, img_size=VIEW, downsample_factor=2)
    config = AyaVisionConfig(
        vision_config=siglip(),
        text_config=cohere_text(tok),
        image_token_index=tok.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
    )
    return Tiny(finished(AyaVisionForConditionalGeneration(config), tok), processor, "<image>")


def cohere2_vision() -> Tiny:
    """The model's own image processor needs torchvision.

    In its place stands the one of GOT-OCR 2, which cuts in the same order and returns the same keys, but chooses grids
    by another rule.
    """
    torch.manual_seed(0)
    named = {
        "boi_token": "<boi>",
        "eoi_token": "<eoi>",
        "image_token": "<image>",
        "img_line_break_token": "<break>",
    }
    tok = tokenizer(*named.values(), named=named)
    cutter = images()
    cutter.patch_size = int(TOKENS**0.5)  # tokens on a side of a view, in the processor's words
    processor = Cohere2VisionProcessor(cutter, tok)
    config = Cohere2VisionConfig(
        vision_config=siglip(),
        text_config=cohere_text(tok),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        alignment_intermediate_size=64,
    )
    return Tiny(finished(Cohere2VisionForConditionalGeneration(config), tok), processor, "<image>")


class TextToo:
    """GOT-OCR 2's processor refuses prompts without images; its tokenizer does not."""

    def __init__(self, processor: GotOcr2Processor, **settings: Any):
        self.processor, self.settings = processor, settings

    def __call__(self, text: list[str], images: list[Image.Image] | None, **options: Any) -> Any:
        if images is None:
            return self.processor.tokenizer(text, return_token_type_ids=False, **options)
        return self.processor(text=text, images=images, **options, **self.settings)


def got_ocr2() -> Tiny:
    torch.manual_seed(0)
    tok = tokenizer("<img>", "</img>", "<imgpad>", "<|im_start|>", "<|im_end|>")
    processor = GotOcr2Processor(images(128), tok)
    config = GotOcr2Config(
        vision_config=GotOcr2VisionConfig(
            hidden_size=32,
            output_channels=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=128,
            patch_size=8,
            global_attn_indexes=[1],
            mlp_dim=32,
            window_size=4,
        ),
        text_config=text(Qwen2Config, tok),
        image_token_index=tok.convert_tokens_to_ids("<imgpad>"),
    )
    ready = TextToo(processor, num_image_tokens=TOKENS, crop_to_patches=True, max_patches=6)
    return Tiny(finished(GotOcr2ForConditionalGeneration(config), tok), ready, "<img><imgpad></img>")
