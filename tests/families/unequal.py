"""Families whose thumbnail has a token grid of its own: LFM2-VL, MiniCPM-V 4.6 and Step-3.7."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    BatchFeature,
    Lfm2Config,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    MiniCPMV4_6Config,
    MiniCPMV4_6ForConditionalGeneration,
    MiniCPMV4_6Processor,
    Qwen3_5TextConfig,
    Siglip2VisionConfig,
    Step3p7Config,
    Step3p7ForConditionalGeneration,
)
from transformers.image_utils import make_flat_list_of_images
from transformers.models.lfm2_vl.processing_lfm2_vl import Lfm2VlProcessor
from transformers.models.minicpmv4_6.configuration_minicpmv4_6 import MiniCPMV4_6VisionConfig
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil
from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig, Step3p7VisionConfig
from transformers.models.step3p7.processing_step3p7 import Step3p7Processor

from families.tagged import TEXT, unchecked
from tiny import Tiny, finished, tokenizer

VISION = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}


class Lfm2Tiles:
    """Stands in for LFM2-VL's image processor, which needs torchvision: the same keys, order, shapes and sizes.

    It resizes with Pillow, and chooses among grids of equal fit by another rule.
    """

    model_input_names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
    tile_size, encoder_patch_size, downsample_factor = 64, 8, 2
    max_image_tokens, max_tiles, use_thumbnail = 16, 9, True

    def fetch_images(self, images: Any) -> Any:
        return images

    def __call__(self, images: Any, **_: Any) -> BatchFeature:
        views, rows, cols, sizes = [], [], [], []
        for image in make_flat_list_of_images(images):
            grid, size = self.grid(image), self.thumbnail(image)
            views += self.cut(image, *grid) if grid != (1, 1) else []
            views.append(self.pixels(image, *size))
            rows.append(grid[0]), cols.append(grid[1]), sizes.append(size)
        patches = [self.patches(view) for view in views]
        length = max(self.max_image_tokens * self.downsample_factor**2, *(len(p) for p in patches))
        padded = [torch.nn.functional.pad(p, (0, 0, 0, length - len(p))) for p in patches]
        masks = [(torch.arange(length) < len(p)).int() for p in patches]
        shapes = [[side // self.encoder_patch_size for side in view.shape[1:]] for view in views]
        pixels = {"pixel_values": torch.stack(padded), "pixel_attention_mask": torch.stack(masks)}
        counted = {"image_rows": rows, "image_cols": cols, "image_sizes": sizes}
        return BatchFeature({**pixels, "spatial_shapes": torch.tensor(shapes), **counted})

    def grid(self, image: Image.Image) -> tuple[int, int]:
        token = self.encoder_patch_size * self.downsample_factor
        if image.width * image.height <= 2 * self.max_image_tokens * token**2:
            return 1, 1
        grids = [(r, n // r) for n in range(2, self.max_tiles + 1) for r in range(1, n + 1) if n % r == 0]
        return min(grids, key=lambda grid: abs(image.width / image.height - grid[1] / grid[0]))

    def thumbnail(self, image: Image.Image) -> tuple[int, int]:
        """Height and width in px: whole tokens, at most `max_image_tokens`."""
        token = self.encoder_patch_size * self.downsample_factor
        shrink = math.sqrt(max(image.height * image.width / self.max_image_tokens, token**2))
        height, width = (max(1, math.floor(side / shrink)) * token for side in (image.height, image.width))
        return height, width

    def cut(self, image: Image.Image, rows: int, cols: int) -> list[torch.Tensor]:
        side = self.tile_size
        canvas = self.pixels(image, rows * side, cols * side)
        return [canvas[:, y * side :, x * side :][:, :side, :side] for y in range(rows) for x in range(cols)]

    def patches(self, view: torch.Tensor) -> torch.Tensor:
        side = self.encoder_patch_size
        return view.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 3, 4, 0).flatten(2).flatten(0, 1)

    @staticmethod
    def pixels(image: Image.Image, height: int, width: int) -> torch.Tensor:
        array = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)
        return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1)


def lfm2_vl() -> Tiny:
    """16 tokens per crop and up to 16 in the thumbnail; the real processor around a stand-in for its image processor."""
    torch.manual_seed(0)
    named = {"image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>"}
    named["image_thumbnail_token"] = "<|img_thumbnail|>"
    grid = [f"<|img_row_{row + 1}_col_{col + 1}|>" for row in range(10) for col in range(10)]
    tok = tokenizer("<image>", *grid, "<|img_thumbnail|>", "<|image_start|>", "<|image_end|>", named=named)
    config = Lfm2VlConfig(
        vision_config=Siglip2VisionConfig(**VISION, num_patches=64, patch_size=8, vision_use_head=False),
        text_config=Lfm2Config(
            vocab_size=len(tok),
            pad_token_id=tok.pad_token_id,
            block_auto_adjust_ff_dim=False,
            layer_types=["conv", "full_attention", "conv"],
            **TEXT,
        ),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        projector_hidden_size=64,
    )
    processor = unchecked(Lfm2VlProcessor, Lfm2Tiles(), tok)
    return Tiny(finished(Lfm2VlForConditionalGeneration(config), tok), processor, "<image>", nested=True)


def minicpmv4_6() -> Tiny:
    """Up to 16 tokens per view, 4 x 4 patches each, of which the tower merges half-way."""
    torch.manual_seed(0)
    named = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    tok = tokenizer(*named.values(), named=named)
    images = MiniCPMV4_6ImageProcessorPil(scale_resolution=112, patch_size=7)
    videos = SimpleNamespace(slice_mode=False, downsample_mode="16x", model_input_names=())
    processor = unchecked(MiniCPMV4_6Processor, images, videos, tok)
    config = MiniCPMV4_6Config(
        vision_config=MiniCPMV4_6VisionConfig(**VISION, image_size=112, patch_size=7),
        text_config=Qwen3_5TextConfig(
            vocab_size=len(tok),
            pad_token_id=tok.pad_token_id,
            layer_types=["linear_attention", "linear_attention", "full_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=16,
            linear_value_head_dim=16,
            head_dim=16,
            **TEXT,
        ),
        insert_layer_id=1,
        image_token_id=tok.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tok.convert_tokens_to_ids("<|video_pad|>"),
    )
    model = finished(MiniCPMV4_6ForConditionalGeneration(config), tok)
    return Tiny(model, processor, "<|image_pad|>")


class Step3p7Windows:
    """Stands in for Step-3.7's image processor, which needs torchvision: the same keys, order and shapes.

    It lays windows of one size, where the real one chooses among three for very small and very long pictures.
    """

    model_input_names = ("pixel_values", "pixel_values_local", "num_local_patches")
    size, patch_size, vision_patch_size, downsampler_stride = {"height": 168, "width": 168}, 84, 7, 4

    def fetch_images(self, images: Any) -> Any:
        return images

    def grid(self, image: Image.Image) -> tuple[int, int]:
        if max(image.size) <= self.size["height"]:
            return 0, 0
        rows, cols = (max(1, round(side / self.patch_size)) for side in (image.height, image.width))
        return min(rows, 4), min(cols, 4)

    def __call__(self, images: Any, **_: Any) -> BatchFeature:
        side, thumbnail = self.patch_size, self.size["height"]
        views, crops, counts, ends = [], [], [], []
        for image in make_flat_list_of_images(images):
            rows, cols = self.grid(image)
            views.append(Lfm2Tiles.pixels(image, thumbnail, thumbnail))
            if rows:
                canvas = Lfm2Tiles.pixels(image, rows * side, cols * side)
                crops += [canvas[:, y * side :, x * side :][:, :side, :side] for y in range(rows) for x in range(cols)]
            counts.append(rows * cols)
            ends.append([col == cols - 1 and row < rows - 1 for row in range(rows) for col in range(cols)])
        result = BatchFeature({"pixel_values": torch.stack(views), "num_local_patches": counts})
        if crops:
            result["pixel_values_local"] = torch.stack(crops)
            result["patch_newline_masks"] = ends
        return result


def step3p7() -> Tiny:
    """9 tokens per crop and 36 in the thumbnail, 4 x 4 patches each; the real processor around a stand-in."""
    torch.manual_seed(0)
    tok = tokenizer("<im_patch>", "<patch_start>", "<patch_end>", "<patch_newline>", "<im_start>", "<im_end>")
    config = Step3p7Config(
        vision_config=Step3p7VisionConfig(**VISION, image_size=168, patch_size=7, mlp_ratio=1.5),
        text_config=Step3p7TextConfig(
            vocab_size=len(tok),
            pad_token_id=tok.pad_token_id,
            head_dim=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=48,
            share_expert_dim=48,
            mlp_layer_types=["dense", "sparse", "dense"],
            layer_types=["full_attention", "sliding_attention", "full_attention"],
            sliding_window=64,
            **TEXT,
        ),
        image_token_id=tok.convert_tokens_to_ids("<im_patch>"),
    )
    processor = unchecked(Step3p7Processor, Step3p7Windows(), tok)
    model = finished(Step3p7ForConditionalGeneration(config), tok)
    # Random weights: without this, places would count for more than what is seen there.
    tower = model.model.vision_model
    tower.embeddings.position_embedding.weight.data *= 0.01
    for conv in (tower.downsampler1, tower.downsampler2):  # blind to the margin of zeros, which is on two sides only
        conv.weight.data[:, :, 0], conv.weight.data[:, :, :, 0] = 0, 0
    return Tiny(model, processor, "<im_patch>")
