"""Stand-ins for image processors that need torchvision: Muse Glimmer's, Nemotron's, and that of Gemma 4 without a tower."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_utils import make_flat_list_of_images


class RowsOfPatches:
    """Stands in for Muse Glimmer's image processor: the same keys, order and shapes, sides of whole tokens."""

    model_input_names = ("pixel_values", "image_grid_thw")

    def __init__(self, patch_size: int, merge_size: int):
        self.patch_size, self.merge_size = patch_size, merge_size

    def fetch_images(self, images: Any) -> Any:
        return images

    def __call__(self, images: Any, **_: Any) -> BatchFeature:
        patches, grids = [], []
        for image in make_flat_list_of_images(images):
            own, rows, columns = cut(image, self.patch_size, self.merge_size)
            patches.append(own.movedim(-1, 1).flatten(1).repeat(1, 2))  # two frames, each by channel
            grids.append([1, rows, columns])
        return BatchFeature({"pixel_values": torch.cat(patches), "image_grid_thw": torch.tensor(grids)})


class PackedPatches(RowsOfPatches):
    """Stands in for Nemotron H Omni's image processor, in the same way."""

    model_input_names = ("pixel_values", "image_grid_hw")
    downsample_ratio = 0.5

    def __call__(self, images: Any, **_: Any) -> BatchFeature:
        cuts = [cut(image, self.patch_size, self.merge_size) for image in make_flat_list_of_images(images)]
        patches = [own.movedim(-1, 1).flatten(1) * 2 - 1 for own, _, _ in cuts]
        grids = torch.tensor([[rows, columns] for _, rows, columns in cuts])
        return BatchFeature({"pixel_values": torch.cat(patches), "image_grid_hw": grids})


class LargePatches:
    """Stands in for Gemma 4's image processor of the family without a tower: the same keys, order and padding."""

    model_input_names = ("pixel_values", "image_position_ids", "num_soft_tokens_per_image")

    def __init__(self, side: int):
        self.side = side

    def fetch_images(self, images: Any) -> Any:
        return images

    def __call__(self, images: Any, **_: Any) -> BatchFeature:
        all_cut = [cut(image, self.side, 1) for image in make_flat_list_of_images(images)]
        longest = 3 + max(len(patches) for patches, _, _ in all_cut)
        pixels, places = [], []
        for patches, rows, columns in all_cut:
            where = torch.tensor([[x, y] for y in range(rows) for x in range(columns)])
            missing = (0, 0, 0, longest - len(patches))
            pixels.append(torch.nn.functional.pad(patches.flatten(1), missing))
            places.append(torch.nn.functional.pad(where, missing, value=-1))
        counts = [len(patches) for patches, _, _ in all_cut]
        made = {"pixel_values": torch.stack(pixels), "image_position_ids": torch.stack(places)}
        return BatchFeature({**made, "num_soft_tokens_per_image": counts})


def cut(image: Image.Image, side: int, whole: int) -> tuple[torch.Tensor, int, int]:
    """Patches (patches, side, side, 3) row by row, and how many rows and columns, multiples of `whole`."""
    token = side * whole
    width, height = (max(1, round(length / token)) * token for length in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    rows = torch.from_numpy(pixels).unfold(0, side, side).unfold(1, side, side)
    return rows.flatten(0, 1).permute(0, 2, 3, 1), height // side, width // side
