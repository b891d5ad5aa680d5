"""Stand-ins for processors that need torchvision: Kimi K2.5's images, and Pixtral's prompts."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_utils import make_flat_list_of_images
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil


class KimiPatches:
    """The same keys, order and shapes as Kimi K2.5's image processor; it resizes to whole tokens and does not pad."""

    model_input_names = ("pixel_values", "image_grid_thw")

    def __init__(self, patch_size: int, merge_size: int):
        self.patch_size, self.merge_size = patch_size, merge_size

    def fetch_images(self, images: Any) -> Any:
        return images

    def __call__(self, images: Any, **_: Any) -> BatchFeature:
        side, token = self.patch_size, self.patch_size * self.merge_size
        patches, grids = [], []
        for image in make_flat_list_of_images(images):
            width, height = (max(1, round(length / token)) * token for length in image.size)
            pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 127.5 - 1
            rows = torch.from_numpy(pixels).unfold(0, side, side).unfold(1, side, side)
            patches.append(rows.flatten(0, 1))
            grids.append([1, height // side, width // side])
        return BatchFeature({"pixel_values": torch.cat(patches), "image_grid_thw": torch.tensor(grids)})


class PixtralPrompts:
    """Writes placeholders line by line, as Pixtral's processor does, around its real image processor."""

    def __init__(self, tokenizer: Any, token: int):
        self.tokenizer, self.token = tokenizer, token
        self.image_processor = PixtralImageProcessorPil(patch_size={"height": token, "width": token})

    def __call__(self, text: list[str], images: list[Image.Image] | None, **options: Any) -> Any:
        if images is None:
            return self.tokenizer(text, return_token_type_ids=False, **options)
        pixels = self.image_processor(images=images, return_tensors="pt")
        sizes = iter(pixels["image_sizes"].tolist())
        written = [re.sub(re.escape("[IMG]"), lambda _: self.lines(*next(sizes)), prompt) for prompt in text]
        return BatchFeature({**self.tokenizer(written, return_token_type_ids=False, **options), **pixels})

    def lines(self, height: int, width: int) -> str:
        rows = ["[IMG]" * (width // self.token)] * (height // self.token)
        return "[IMG_BREAK]".join(rows) + "[IMG_END]"
