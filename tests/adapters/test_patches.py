"""From patches to the picture and back, and guides, against what the families' own processors make of pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from families.native import PATCH
from globalcom2.adapters.families import load_adapter
from globalcom2.adapters.patches import image_of, patches_of
from globalcom2.adapters.windows import guide_size
from native_cases import PICTURES, case_of

REAL = ["qwen2_vl", "glm4v", "ernie4_5_vl_moe", "paddleocr_vl"]
"""Families with image processors of their own in Pillow, of which the others' are the same or stand-ins."""
TOWERS = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "paddleocr_vl", "ernie4_5_vl_moe", "kimi_k25", "mistral3"]


def block_of(name):
    return 1 if load_adapter(name).row_by_row else 2


@pytest.mark.parametrize("name", REAL)
def test_round_trip_is_exact(name):
    """Patches of a processor become the picture that it was given, normalised, and the very same patches again."""
    processor = case_of(name).tiny.processor.image_processor
    for image in PICTURES:
        made = processor(images=[image], return_tensors="pt")
        patches, (_, height, width) = made["pixel_values"], made["image_grid_thw"][0].tolist()
        frames = image_of(patches, (height, width), PATCH, block_of(name))
        scaled = torch.from_numpy(np.asarray(image, np.float32) / 255)
        mean, deviation = (torch.tensor(numbers) for numbers in (processor.image_mean, processor.image_std))
        expected = ((scaled - mean) / deviation).permute(2, 0, 1)
        assert frames.shape[1:] == (3, image.height, image.width)
        for frame in frames:
            torch.testing.assert_close(frame, expected, atol=1e-5, rtol=0)
        again = patches_of(frames, (height, width), PATCH, block_of(name))
        assert torch.equal(again.view_as(patches), patches)


def with_guides(name):
    """The adapter with guides of their own, the processor's pixels and sizes, and the encoder's arguments with guides."""
    case = case_of(name)
    base, adapter = case.model.base_model, load_adapter(name).guided("thumbnail")
    layouts = adapter.layouts(base, {**case.batch, "input_ids": case.batch["input_ids"]})
    given = adapter.encode_arguments(base, case.batch)
    return adapter, layouts, given, adapter.with_guides(base, given, layouts)


@pytest.mark.parametrize("name", TOWERS)
def test_a_guide_is_nearly_what_the_processor_makes_of_a_smaller_picture(name):
    """Behind all images, which stay as they are; mean difference below 0.02 of a deviation."""
    case = case_of(name)
    adapter, _, given, call = with_guides(name)
    sizes = [guide_size(image.height // 8, image.width // 8) for image in PICTURES]
    small = [
        image.resize((8 * width, 8 * height), Image.Resampling.BICUBIC)
        for image, (height, width) in zip(PICTURES, sizes, strict=True)
    ]
    expected = adapter.encode_arguments(case.model.base_model, case.tiny.inputs([case.tiny.tag * 4], small))
    key, count = adapter.grid_name, len(PICTURES)
    assert torch.equal(call[key][:count], given[key])
    assert torch.equal(call[key][count:], expected[key])
    pixels, number = call["pixel_values"], len(given["pixel_values"])
    assert torch.equal(pixels[:number], given["pixel_values"])
    guides, wanted = pixels[number:], expected["pixel_values"]
    if name == "mistral3":  # padded to the largest picture of the call
        assert not guides[..., wanted.shape[-2] :, :].any()
        assert not guides[..., wanted.shape[-1] :].any()
        guides = guides[..., : wanted.shape[-2], : wanted.shape[-1]]
    assert guides.shape == wanted.shape
    assert (guides - wanted).abs().mean() < 0.02
    assert (guides - wanted).abs().mean() > 0, "the processor rounds to whole numbers between its two steps"


@pytest.mark.parametrize("name", TOWERS)
def test_the_tower_gives_images_the_same_features_beside_guides(name):
    """And to a guide those that it gives to a picture with the guide's pixels by itself."""
    case, (adapter, layouts, given, call) = case_of(name), with_guides(name)
    base = case.model.base_model
    with torch.no_grad():
        alone = adapter.guided("pooled").encode(base, given, layouts)
        both = adapter.encode(base, given, layouts)
        key, count, number = adapter.grid_name, len(PICTURES), len(given["pixel_values"])
        guides = base.get_image_features(**{"pixel_values": call["pixel_values"][number:], key: call[key][count:]})
    features = adapter.tower_features(base, both)
    assert len(features) == 2 * count
    for n in range(count):
        torch.testing.assert_close(features[2 * n], guides.pooler_output[n], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(features[2 * n + 1], alone.pooler_output[n], atol=2e-5, rtol=1e-5)
