"""The native mini's processor. It works without torchvision, which the stock class needs for videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast, ProcessorMixin, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"


class PictureProcessor(Qwen2_5_VLProcessor):
    """Qwen's processor for pictures alone. Without torchvision the stock class cannot be made: it wants one for videos."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **_: Any):
        self.image_token, self.video_token = IMAGE, VIDEO
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([IMAGE, VIDEO])
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def native_processor(folder: Path) -> PictureProcessor:
    """The processor, the same with torchvision and without.

    Args:
        folder: With the processor's files.
    """
    images = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
    words = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    template = (folder / "chat_template.jinja").read_text()
    return PictureProcessor(images, words, chat_template=template)
