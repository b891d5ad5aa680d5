"""The chat prompt: how a question about one image is put to a model."""

from __future__ import annotations

from typing import Any


def chat_prompt(processor: Any, question: str) -> str:
    """A prompt with one image and a question, which ends where the answer begins.

    Args:
        processor: The model's processor. Its chat template is used where it has one; else LLaVA's "USER: ... ASSISTANT:".
        question: The question, without a tag for the image.
    """
    if getattr(processor, "chat_template", None):
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        return str(processor.apply_chat_template([message], add_generation_prompt=True))
    return f"USER: {getattr(processor, 'image_token', '<image>')}\n{question} ASSISTANT:"
