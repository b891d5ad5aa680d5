"""Checkpoint folders of tiny random-weight models that both vLLM and transformers load."""

from pathlib import Path

from families import FAMILIES
from tiny import Tiny

VIDEO_PROCESSORS = {
    "llava_onevision": "LlavaOnevisionVideoProcessor",
    "internvl": "InternVLVideoProcessor",
    "smolvlm": "SmolVLMVideoProcessor",
}


# vLLM has the 9 of the published models in its code.
BUILT = {"llava_onevision": lambda: FAMILIES["llava_onevision"]("anyres_max_9")}


def tiny(name: str) -> Tiny:
    return BUILT.get(name, FAMILIES[name])()


def save(name: str, folder: Path) -> Path:
    import transformers

    made = tiny(name)
    if name in VIDEO_PROCESSORS:  # tests elsewhere do without torchvision
        made.processor.video_processor = getattr(transformers, VIDEO_PROCESSORS[name])()
    made.model.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    return folder
