"""The mini model: a small trained LLaVA-NeXT that ships with the package and needs no network.

It is an ordinary `LlavaNextForConditionalGeneration` with an ordinary `LlavaNextProcessor`. MODEL_CARD.md describes it.
Weights, pictures and their loader live here. How they were made does not: that is `training/mini`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

FOLDER = Path(__file__).parent / "model"
DEMO_PICTURE = Path(__file__).parent / "demo.png"
EVALUATION_SET = Path(__file__).parent / "evaluation.parquet"
"""600 pictures with 8 questions each, never trained or tuned on. MODEL_CARD.md describes them."""
DEMO_QUESTION = "What number is on the orange triangle?"


def load_mini(**kwargs: Any) -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    """Load the mini model and its processor from the package, offline.

    Args:
        **kwargs: Passed on to `from_pretrained`, e.g. `dtype`, `attn_implementation` or `device_map`.

    Returns:
        (model, processor). The model is in eval mode, and float32 unless `dtype` is given.
    """
    import torch  # noqa: PLC0415
    from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor  # noqa: PLC0415

    kwargs.setdefault("dtype", torch.float32)
    model = LlavaNextForConditionalGeneration.from_pretrained(FOLDER, local_files_only=True, **kwargs).eval()
    processor = LlavaNextProcessor.from_pretrained(FOLDER, local_files_only=True, backend="pil")
    return model, processor


def demo_picture() -> Image.Image:
    """Open the demo picture, RGB. The model was trained neither on it nor on its photograph."""
    return Image.open(DEMO_PICTURE).convert("RGB")
