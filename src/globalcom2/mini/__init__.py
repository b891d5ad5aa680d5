"""The mini models: small trained models that ship with the package and need no network.

"tiled" is an ordinary `LlavaNextForConditionalGeneration`, "native" an ordinary `Qwen2_5_VLForConditionalGeneration`.
MODEL_CARD.md describes both. Weights, pictures and their loader live here. How they were made does not: that is `training`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from globalcom2.errors import unknown_name

HERE = Path(__file__).parent
FOLDER = HERE / "model"
NATIVE_FOLDER = HERE / "native"
DEMO_PICTURE = HERE / "demo.png"
EVALUATION_SET = HERE / "evaluation.parquet"
"""600 pictures with 8 questions each, never trained or tuned on. MODEL_CARD.md describes them."""
NATIVE_QUESTIONS = HERE / "native_questions.parquet"
"""The same questions about the same pictures, and where tags are; without the pictures."""
DEMO_QUESTION = "What number is on the orange triangle?"
FOLDERS = {"tiled": FOLDER, "native": NATIVE_FOLDER}


def load_mini(name: str = "tiled", **kwargs: Any) -> tuple[Any, Any]:
    """Load a mini model and its processor from the package, offline.

    Args:
        name: "tiled", a LLaVA-NeXT with a thumbnail and crops; or "native", a Qwen2.5-VL, whose images keep their resolution.
        **kwargs: Passed on to `from_pretrained`, e.g. `dtype`, `attn_implementation` or `device_map`.

    Returns:
        (model, processor). The model is in eval mode, and float32 unless `dtype` is given.

    Raises:
        InputError: Another name.
    """
    _check_name(name)
    import torch  # noqa: PLC0415
    from transformers import LlavaNextForConditionalGeneration, Qwen2_5_VLForConditionalGeneration  # noqa: PLC0415

    kwargs.setdefault("dtype", torch.float32)
    made = LlavaNextForConditionalGeneration if name == "tiled" else Qwen2_5_VLForConditionalGeneration
    model = made.from_pretrained(FOLDERS[name], local_files_only=True, **kwargs).eval()
    return model, mini_processor(name)


def mini_processor(name: str = "tiled") -> Any:
    """Load the processor of a mini model alone.

    Args:
        name: "tiled" or "native".

    Raises:
        InputError: Another name.
    """
    _check_name(name)
    if name == "native":
        from globalcom2.mini.pictures_only import native_processor  # noqa: PLC0415

        return native_processor(NATIVE_FOLDER)
    from transformers import LlavaNextProcessor  # noqa: PLC0415

    return LlavaNextProcessor.from_pretrained(FOLDER, local_files_only=True, backend="pil")


def demo_picture() -> Image.Image:
    """Open the demo picture, RGB. No mini was trained on it or on its photograph."""
    return Image.open(DEMO_PICTURE).convert("RGB")


def _check_name(name: object) -> None:
    if name not in FOLDERS:
        raise unknown_name("name", name, FOLDERS)
