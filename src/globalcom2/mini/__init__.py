"""The mini model: a small LLaVA-NeXT with weights that we trained, so that everything can be tried without a network.

An ordinary `LlavaNextForConditionalGeneration` with an ordinary `LlavaNextProcessor`. MODEL_CARD.md says what it is.
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
"""600 pictures with 8 questions each, never trained or tuned on; EVALUATION.md says what is in it."""
DEMO_QUESTION = "What number is on the orange triangle?"


def load_mini(**kwargs: Any) -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    """Load the mini model and its processor from the package, offline.

    Args:
        **kwargs: Passed on to `from_pretrained`, e.g. `dtype`, `attn_implementation` or `device_map`.

    Returns:
        (model in eval mode, processor); float32 unless `dtype` says otherwise.
    """
    import torch  # noqa: PLC0415
    from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor  # noqa: PLC0415

    kwargs.setdefault("dtype", torch.float32)
    model = LlavaNextForConditionalGeneration.from_pretrained(FOLDER, local_files_only=True, **kwargs).eval()
    processor = LlavaNextProcessor.from_pretrained(FOLDER, local_files_only=True, backend="pil")
    return model, processor


def demo_picture() -> Image.Image:
    """The picture of the demo; the model was not trained on it, nor on its photograph."""
    return Image.open(DEMO_PICTURE).convert("RGB")
