"""The LLaVA line beyond LLaVA-NeXT: crops stitched, with a newline per line."""

from typing import Any
from unittest import mock

import torch
from transformers import (
    CLIPVisionConfig,
    Granite4VisionConfig,
    Granite4VisionForConditionalGeneration,
    Granite4VisionProcessor,
    Granite4VisionTextConfig,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from tiny import PATCH, PINPOINTS, VIEW, Tiny, finished, tokenizer

VISION = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": VIEW,
    "patch_size": PATCH,
}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
}
SIDE = VIEW // PATCH


def without_videos(processor: type, *args: Any, **kwargs: Any) -> Any:
    """A processor for images alone: its video processor would need torchvision."""
    check = ProcessorMixin.check_argument_for_proper_class

    def relaxed(self: Any, name: str, value: Any) -> Any:
        return None if name == "video_processor" and value is None else check(self, name, value)

    with mock.patch.object(ProcessorMixin, "check_argument_for_proper_class", relaxed):
        return processor(*args, video_processor=None, **kwargs)


def llava_onevision(aspect: str = "anyres_max_3") -> Tiny:
    """36 tokens per view, up to 4 x 4 crops, shrunk to three views' tokens; several images in a prompt have no crops."""
    torch.manual_seed(0)
    tok = tokenizer("<image>", "<video>")
    pinpoints = [[VIEW * rows, VIEW * cols] for rows in range(1, 5) for cols in range(1, 5)]
    processor = without_videos(
        LlavaOnevisionProcessor,
        LlavaOnevisionImageProcessorPil(size={"height": VIEW, "width": VIEW}, image_grid_pinpoints=pinpoints),
        tok,
        num_image_tokens=SIDE**2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=aspect,
    )
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=Qwen2Config(vocab_size=len(tok), pad_token_id=tok.pad_token_id, tie_word_embeddings=False, **TEXT),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        video_token_index=tok.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio=aspect,
    )
    return Tiny(finished(LlavaOnevisionForConditionalGeneration(config), tok), processor, "<image>", nested=True)


def llava_next_video() -> Tiny:
    """36 tokens per view, up to 3 x 3 crops."""
    torch.manual_seed(0)
    tok = tokenizer("<image>", "<video>")
    processor = without_videos(
        LlavaNextVideoProcessor,
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": VIEW}, crop_size={"height": VIEW, "width": VIEW}, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=tok,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config = LlavaNextVideoConfig(
        vision_config=CLIPVisionConfig(**VISION, projection_dim=32),
        text_config=LlamaConfig(vocab_size=len(tok), pad_token_id=tok.pad_token_id, **TEXT),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        video_token_index=tok.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=SIDE**2,
    )
    return Tiny(finished(LlavaNextVideoForConditionalGeneration(config), tok), processor, "<image>")


def granite4_vision() -> Tiny:
    """144 patches and 36 tokens per view, up to 3 x 3 crops; features for five layers of the language model."""
    torch.manual_seed(0)
    tok = tokenizer("<image>")
    view = 2 * VIEW
    pinpoints = [[2 * height, 2 * width] for height, width in PINPOINTS]
    processor = Granite4VisionProcessor(
        LlavaNextImageProcessorPil(
            size={"height": view, "width": view},
            crop_size={"height": view, "width": view},
            image_grid_pinpoints=pinpoints,
        ),
        tok,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        downsample_rate="2/4",
    )
    config = Granite4VisionConfig(
        vision_config=SiglipVisionConfig(**VISION | {"hidden_size": 64, "image_size": view}, vision_use_head=False),
        text_config=Granite4VisionTextConfig(
            vocab_size=len(tok),
            pad_token_id=tok.pad_token_id,
            attention_multiplier=0.25,
            **TEXT | {"num_hidden_layers": 6},
        ),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full",
        image_grid_pinpoints=pinpoints,
        downsample_rate="2/4",
        deepstack_layer_map=[[-1, 0]],
        spatial_vision_layer=-2,
        spatial_target_layers=[1, 2, 3, 4],
        image_seq_length=SIDE**2,
    )
    return Tiny(finished(Granite4VisionForConditionalGeneration(config), tok), processor, "<image>")
