"""The chat prompt: how a question about one image is put to a model."""

from __future__ import annotations

from typing import Any

from PIL import Image

from globalcom2.errors import InputError


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


def question_inputs(config: Any, processor: Any, image: Image.Image, question: str) -> dict[str, Any]:
    """What a model takes for one question about one image, as its processor hands it out.

    Args:
        config: The model's configuration.
        processor: Its processor.
        image: RGB.
        question: Text without the tag that stands for the image.

    Raises:
        InputError: The processor gives the image no place in the prompt.
    """
    prompt, reason = chat_prompt(processor, question), "no visual tokens"
    try:
        made = dict(processor(text=prompt, images=image, return_tensors="pt"))
        if bool((made["input_ids"] == config.image_token_id).any()):
            return made
    except ValueError as error:  # many processors compare the prompt's tags with the images
        reason = " ".join(str(error).split())
    template = "a" if getattr(processor, "chat_template", None) else "no"
    raise InputError(
        "the processor must have a chat template that gives an image its place in the prompt, got one with "
        f"{template} template, and for the prompt {prompt!r}: {reason:.300} Call compress on the model with a prompt of your own."
    )
