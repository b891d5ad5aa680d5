"""Checkpoint folders of tiny random-weight models that both vLLM and transformers load."""

from pathlib import Path

import torch
from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector

from families import FAMILIES
from tiny import Tiny, spread

VIDEO_PROCESSORS = {
    "llava_onevision": "LlavaOnevisionVideoProcessor",
    "internvl": "InternVLVideoProcessor",
    "smolvlm": "SmolVLMVideoProcessor",
    "qwen2_vl": "Qwen2VLVideoProcessor",
    "qwen2_5_vl": "Qwen2VLVideoProcessor",
    "qwen3_vl": "Qwen3VLVideoProcessor",
}

FRAMES = {"llava_onevision": {"height": 84, "width": 84}, "internvl": {"height": 112, "width": 112}}
"""Sizes of a video's frames that the towers of these models read."""


def _features_of_two_layers() -> Tiny:
    made = FAMILIES["llava_next"]()
    made.model.config.vision_feature_layer = [-2, 1]
    torch.manual_seed(2)
    made.model.model.multi_modal_projector = LlavaNextMultiModalProjector(made.model.config)
    spread(made.model)
    return made


BUILT = {
    "llava_next_two_layers": _features_of_two_layers,
    # vLLM has the 9 of the published models in its code.
    "llava_onevision": lambda: FAMILIES["llava_onevision"]("anyres_max_9"),
}


def tiny(name: str) -> Tiny:
    if name in BUILT or name in FAMILIES:
        return (BUILT.get(name) or FAMILIES[name])()
    import native_models  # takes its time

    return native_models.BUILT[name]()


def save(name: str, folder: Path) -> Path:
    import transformers

    made = tiny(name)
    if name in VIDEO_PROCESSORS:  # tests elsewhere do without torchvision
        # Qwen: patches as small as those of pictures, and the same colours, with which vLLM reads both.
        video = getattr(transformers, VIDEO_PROCESSORS[name])
        images = made.processor.image_processor
        same = ("patch_size", "size", "image_mean", "image_std") if "qwen" in name else ()
        more = {"size": FRAMES[name]} if name in FRAMES else {}
        made.processor.video_processor = video(**{own: getattr(images, own) for own in same}, **more)
    made.model.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    return folder
