"""Families with tags between the views: Idefics3, SmolVLM, Llama 4, Ovis2."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    BatchFeature,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    Idefics3VisionConfig,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Llama4Processor,
    Llama4TextConfig,
    Llama4VisionConfig,
    LlamaConfig,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    Ovis2Processor,
    Ovis2VisionConfig,
    Qwen2Config,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMProcessor,
    SmolVLMVisionConfig,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from tiny import Tiny, finished, tokenizer

VIEW, PATCH = 112, 14
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": VIEW,
    "patch_size": PATCH,
}


def unchecked(make: Any, *args: Any, **kwargs: Any) -> Any:
    """A processor without a part of the right class, where that one needs torchvision."""
    check = ProcessorMixin.check_argument_for_proper_class
    try:
        ProcessorMixin.check_argument_for_proper_class = lambda self, name, argument: None
        return make(*args, **kwargs)
    finally:
        ProcessorMixin.check_argument_for_proper_class = check


def idefics3() -> Tiny:
    """16 tokens per view, one id per tag."""
    torch.manual_seed(0)
    grid = [f"<row_{row + 1}_col_{col + 1}>" for row in range(4) for col in range(4)]
    tok = tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *grid)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 4 * VIEW}, max_image_size={"longest_edge": VIEW})
    config = Idefics3Config(
        vision_config=Idefics3VisionConfig(**VISION),
        text_config=LlamaConfig(vocab_size=len(tok), pad_token_id=tok.pad_token_id, **TEXT),
        scale_factor=2,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        pad_token_id=tok.pad_token_id,
    )
    model = finished(Idefics3ForConditionalGeneration(config), tok)
    return Tiny(model, Idefics3Processor(images, tok, image_seq_len=16), "<image>", nested=True)


def smolvlm() -> Tiny:
    """16 tokens per view of 4 x 4 patches each; tags of several ids, as in the tokenizer of SmolVLM 2.2B."""
    torch.manual_seed(0)
    named = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    tok = tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", named=named)
    view = VIEW + 3  # of which the patches leave a rest, as of 384 px in SmolVLM 2.2B
    images = SmolVLMImageProcessorPil(size={"longest_edge": 4 * view}, max_image_size={"longest_edge": view})
    config = SmolVLMConfig(
        vision_config=SmolVLMVisionConfig(**{**VISION, "patch_size": 7, "image_size": view}),
        text_config=LlamaConfig(vocab_size=len(tok), pad_token_id=tok.pad_token_id, **TEXT),
        scale_factor=4,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        pad_token_id=tok.pad_token_id,
    )
    # Only spells numbers of video frames, but the processor insists on it.
    processing_smolvlm.num2words = processing_smolvlm.num2words or str
    processor = unchecked(SmolVLMProcessor, images, tok, video_processor=None, image_seq_len=16)
    return Tiny(finished(SmolVLMForConditionalGeneration(config), tok), processor, "<image>", nested=True)


class Llama4Tiles:
    """Stands in for Llama 4's image processor, which needs torchvision: the same keys, order and shapes.

    The real one pads instead of stretching, and knows more canvases.
    """

    model_input_names = ("pixel_values",)

    def fetch_images(self, images: Any) -> Any:
        return images

    def __call__(self, images: Any, **_: Any) -> BatchFeature:
        views, ratios = [], []
        for image in images:
            rows, cols = (min(3, -(-side // VIEW)) for side in (image.height, image.width))
            canvas = self.pixels(image, cols * VIEW, rows * VIEW)
            views += [
                canvas[:, y : y + VIEW, x : x + VIEW]
                for y in range(0, rows * VIEW, VIEW)
                for x in range(0, cols * VIEW, VIEW)
            ]
            if rows * cols > 1:
                views.append(self.pixels(image, VIEW, VIEW))
            ratios.append(torch.tensor([rows, cols]))
        return BatchFeature({"pixel_values": torch.stack(views), "aspect_ratios": ratios})

    @staticmethod
    def pixels(image: Image.Image, width: int, height: int) -> torch.Tensor:
        array = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)
        return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1)


def llama4() -> Tiny:
    """16 tokens per view; the real processor around a stand-in for its image processor."""
    torch.manual_seed(0)
    names = ["patch", "image", "image_start", "image_end", "tile_x_separator", "tile_y_separator"]
    tok = tokenizer(*(f"<|{name}|>" for name in names))
    ids = {name: tok.convert_tokens_to_ids(f"<|{name}|>") for name in names}
    config = Llama4Config(
        vision_config=Llama4VisionConfig(
            **{**VISION, "intermediate_size": 192},  # four patches laid end to end
            vision_output_dim=64,
            projector_input_dim=64,
            projector_output_dim=64,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        text_config=Llama4TextConfig(
            **TEXT,
            vocab_size=len(tok),
            pad_token_id=tok.pad_token_id,
            head_dim=16,
            intermediate_size_mlp=96,
            num_local_experts=2,
        ),
        image_token_index=ids["patch"],
        boi_token_index=ids["image_start"],
        eoi_token_index=ids["image_end"],
    )
    processor = unchecked(Llama4Processor, Llama4Tiles(), tok, patch_size=PATCH)
    model = finished(Llama4ForConditionalGeneration(config), tok)
    # Random weights: without this, places would count for more than what is seen there.
    model.vision_model.positional_embedding_vlm.data *= 0.1
    try:
        model(input_ids=torch.tensor([[1, 2]]))
    except AttributeError as error:
        pytest.skip(f"Llama 4 of transformers {transformers.__version__} fails unpatched: {error}")
    return Tiny(model, processor, "<|image|>")


def ovis2() -> Tiny:
    """16 tokens per view, a visual vocabulary of 95 words and five indicators."""
    torch.manual_seed(0)
    names = ["ATOM", "START", "GRID", "COL", "ROW", "END"]
    tok = tokenizer("<image>", *(f"<IMG_{name}>" for name in names))
    atom, *indicators = (tok.convert_tokens_to_ids(f"<IMG_{name}>") for name in names)
    config = Ovis2Config(
        vision_config=Ovis2VisionConfig(**VISION, vocab_size=100, hidden_stride=2),
        text_config=Qwen2Config(vocab_size=len(tok), pad_token_id=tok.pad_token_id, tie_word_embeddings=False, **TEXT),
        image_token_id=atom,
        visual_indicator_token_ids=indicators,
        vocab_size=len(tok),
        hidden_size=TEXT["hidden_size"],
        tie_word_embeddings=False,
    )
    images = Ovis2ImageProcessorPil(size={"height": VIEW, "width": VIEW}, crop_to_patches=True, max_patches=9)
    model = finished(Ovis2ForConditionalGeneration(config), tok)
    model.model.vision_tower.transformer.embeddings.position_embedding.weight.data *= 0.1  # as above
    return Tiny(model, Ovis2Processor(images, tok, image_seq_length=16), "<image>")
