"""The registry of model families: which adapter belongs to which model type.

Adapters are imported when they are asked for, and nothing here imports torch, so that listing families is instant.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING

from globalcom2.adapters.family import Family
from globalcom2.adapters.native_families import NATIVE_FAMILIES, NATIVE_UNSUPPORTED
from globalcom2.core.plugins import load_entry_points
from globalcom2.errors import InputError, UnsupportedModelError

if TYPE_CHECKING:
    from globalcom2.adapters.base import Adapter


ENTRY_POINTS = "globalcom2.families"
"""Entry-point group: another package registers `name = "module:FAMILY"`, FAMILY being a `Family`."""

_FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            "llava_next",
            "globalcom2.adapters.llava_next:LlavaNextAdapter",
            "[CLS] row of the CLIP tower, in the layer of the features",
            "first",
            "random weights and the trained mini model; not with published checkpoints",
            "exact, newlines included",
            checkpoints=("llava-hf/llava-v1.6-vicuna-7b-hf", "llava-hf/llava-v1.6-mistral-7b-hf"),
            vllm=True,
        ),
        Family(
            "llava_next_video",
            "globalcom2.adapters.llava_next_video:LlavaNextVideoAdapter",
            "[CLS] row of the CLIP tower, in the layer of the features; in videos the mean over a token's patches",
            "first; of a video, the pooled clip guides and is not read",
            "random weights; videos as tensors, their processor needs torchvision",
            "exact, newlines included",
            checkpoints=("llava-hf/LLaVA-NeXT-Video-7B-hf",),
        ),
        Family(
            "granite4_vision",
            "globalcom2.adapters.granite4_vision:Granite4VisionAdapter",
            "minus cosine to the mean of the view (SigLIP tower without [CLS]), averaged over a token's patches",
            "first",
            "random weights",
            "exact, newlines included",
            checkpoints=("ibm-granite/granite-vision-4.1-4b",),
        ),
        Family(
            "llava_onevision",
            "globalcom2.adapters.llava_onevision:LlavaOnevisionAdapter",
            "minus cosine to the mean of the view (SigLIP tower without [CLS])",
            "first; of a video, the pooled clip guides and is not read",
            "random weights; videos as tensors, their processor needs torchvision",
            "exact, newlines included; several images in a prompt have no crops",
            checkpoints=("llava-hf/llava-onevision-qwen2-7b-ov-hf", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"),
            vllm=True,
        ),
        Family(
            "idefics3",
            "globalcom2.adapters.idefics3:Idefics3Adapter",
            "minus cosine to the mean of the view (SigLIP tower without [CLS])",
            "last",
            "random weights",
            "exact; tags between views stay and are not counted; grid from the tags",
            checkpoints=("HuggingFaceM4/Idefics3-8B-Llama3", "HuggingFaceTB/SmolVLM-Instruct"),
            vllm=True,
        ),
        Family(
            "smolvlm",
            "globalcom2.adapters.idefics3:Idefics3Adapter",
            "minus cosine to the mean of the view (SigLIP tower without [CLS])",
            "last",
            "random weights",
            "exact; tags between views stay and are not counted; grid from the tags",
            checkpoints=("HuggingFaceTB/SmolVLM2-2.2B-Instruct",),
            vllm=True,
        ),
        Family(
            "llama4",
            "globalcom2.adapters.llama4:Llama4Adapter",
            "[CLS] row of the last layer of its own tower, mean over the patches of a token",
            "last",
            "random weights; the real processor around a stand-in for its image processor (needs torchvision); not with "
            "transformers 5.24.0, in which the model fails by itself",
            "exact; tags between views stay and are not counted; grid from the tags",
            checkpoints=("meta-llama/Llama-4-Scout-17B-16E-Instruct",),
        ),
        Family(
            "ovis2",
            "globalcom2.adapters.ovis2:Ovis2Adapter",
            "minus cosine to the mean of the view (tower without [CLS])",
            "first",
            "random weights",
            "exact; tags between views stay and are not counted; grid from the tags",
            checkpoints=("thisisiron/Ovis2-2B-hf",),
        ),
        Family(
            "internvl",
            "globalcom2.adapters.internvl:InternVLAdapter",
            "[CLS] row of the InternViT tower, in the layer of the features, mean over the patches of a token",
            "last",
            "random weights with the real processor; videos not",
            "exact; grid from the pixels, equal crops where these do not tell",
            checkpoints=("OpenGVLab/InternVL3-1B-hf",),
            vllm=True,
        ),
        Family(
            "qianfan_ocr",
            "globalcom2.adapters.internvl:QianfanOCRAdapter",
            "[CLS] row of the tower, in the layer of the features, mean over the patches of a token",
            "last",
            "random weights with the real processor",
            "exact; grid from the pixels, equal crops where these do not tell",
            checkpoints=("baidu/Qianfan-OCR",),
        ),
        Family(
            "aya_vision",
            "globalcom2.adapters.cohere:AyaVisionAdapter",
            "similarity of projected features; no [CLS]",
            "last",
            "random weights with the real processor",
            "exact; tags stay and are not counted; grid from the pixels, equal crops where these do not tell",
            checkpoints=("CohereLabs/aya-vision-8b",),
        ),
        Family(
            "cohere2_vision",
            "globalcom2.adapters.cohere:Cohere2VisionAdapter",
            "similarity of projected features; no [CLS]",
            "last",
            "random weights with the real processor, but a stand-in for its image processor, which needs torchvision",
            "exact; tags stay and are not counted; grid from the pixels, equal crops where these do not tell",
            checkpoints=("CohereLabs/command-a-vision-07-2025",),
        ),
        Family(
            "got_ocr2",
            "globalcom2.adapters.got_ocr2:GotOcr2Adapter",
            "similarity of projected features alone; no [CLS], windowed attention",
            "last",
            "random weights with the real processor; one page per prompt",
            "exact; grid from the pixels, equal crops where these do not tell",
            checkpoints=("stepfun-ai/GOT-OCR-2.0-hf",),
        ),
        Family(
            "lfm2_vl",
            "globalcom2.adapters.lfm2_vl:Lfm2VlAdapter",
            "similarity of projected features (SigLIP 2 tower without [CLS])",
            "last, with its own token grid",
            "random weights; the real processor around a stand-in for its image processor, which needs torchvision",
            "exact; tags between views stay and are not counted; grid from the tags",
            checkpoints=("LiquidAI/LFM2-VL-1.6B",),
        ),
        Family(
            "minicpmv4_6",
            "globalcom2.adapters.minicpmv4_6:MiniCPMV46Adapter",
            "similarity of projected features (SigLIP tower without [CLS])",
            "first, with its own token grid",
            "random weights; videos not",
            "exact; tags between views stay and are not counted; grid from the tags",
            checkpoints=("openbmb/MiniCPM-V-4.6",),
        ),
        Family(
            "minicpmv4_7",
            "globalcom2.adapters.minicpmv4_7:MiniCPMV47Adapter",
            "similarity of projected features (SigLIP tower without [CLS])",
            "first, with its own token grid",
            "random weights with the real processor; videos not",
            "exact; tags between views stay and are not counted; grid from the tags",
            checkpoints=("openbmb/MiniCPM-V-4.7-1B",),
        ),
        Family(
            "step3p7",
            "globalcom2.adapters.step3p7:Step3p7Adapter",
            "similarity of projected features (its own tower, without [CLS])",
            "last, with its own token grid",
            "random weights; the real processor around a stand-in for its image processor, which needs torchvision",
            "exact; tags between views stay and are not counted; grid from the tags",
            checkpoints=("stepfun-ai/Step-3.7-Flash",),
        ),
        *NATIVE_FAMILIES,
    )
}

UNSUPPORTED = {
    "deepseek_ocr2": "its tokens are learned queries, which have no place in the image",
    "gemma3": "pan-and-scan crops do not tile the image, and text stands between them",
    "gemma3n": "it has no crops",
    "idefics2": "its tokens are latents of a resampler, which have no place in the image",
    "mllama": "it reads images by cross-attention: there are no visual tokens in the prompt, and no thumbnail",
    "molmo2": "overlapping crops are stitched into one map before tokens are pooled",
    "perception_lm": "its tower is a timm model, which was not at hand, and nothing tells its grid; not built yet",
    "phi4_multimodal": "its forward takes no encoder output and merges images in a way of its own",
    "unlimited_ocr": "lines of the thumbnail end with newlines too, and a separator follows, which no budget knows yet",
    **NATIVE_UNSUPPORTED,
}
"""Families that cut images, or seem to, and do not work with this package, with the reason."""


def register_family(family: Family) -> None:
    """Add a model family. A model type can be registered once.

    Raises:
        InputError: No `Family`, or a model type that has one.
    """
    if not isinstance(family, Family):
        raise InputError(f"family must be a globalcom2.Family, got {type(family).__name__}.")
    if family.model_type in _FAMILIES:
        raise InputError(
            f"model type {family.model_type!r} is already registered by {_FAMILIES[family.model_type].target}. One "
            "adapter serves a model type; subclass the one that is there under a model type of your own."
        )
    _FAMILIES[family.model_type] = family


@cache
def _load_entry_points() -> None:
    load_entry_points(ENTRY_POINTS, Family, register_family)


def list_models() -> list[str]:
    """Model types (`model.config.model_type`) that `compress` accepts, those of other packages among them."""
    _load_entry_points()
    return sorted(_FAMILIES)


def get_family(model_type: str) -> Family:
    """The family of that model type.

    Raises:
        UnsupportedModelError: The family is not supported; the message lists those that are, and says why where known.
    """
    known = list_models()
    if model_type in _FAMILIES:
        return _FAMILIES[model_type]
    why = UNSUPPORTED.get(model_type, "")
    raise UnsupportedModelError(
        f"model must be of a supported family ({', '.join(known)}), got model_type {model_type!r}"
        + (f": {why}." if why else ". A package of your own may add it, see docs/extending.md.")
    )


def load_adapter(model_type: str) -> Adapter:
    """An instance of the family's adapter.

    Raises:
        UnsupportedModelError: No such family, or its adapter cannot be imported, or is none.
    """
    from globalcom2.adapters.base import Adapter  # noqa: PLC0415 - torch

    target = get_family(model_type).target
    module, _, name = target.partition(":")
    expected = (
        f"the adapter of model type {model_type!r} must be a class that can be imported and made without arguments"
    )
    try:
        adapter = getattr(importlib.import_module(module), name)()
    except Exception as error:  # whatever another package may raise
        raise UnsupportedModelError(
            f"{expected}, got {target}: {type(error).__name__}: {error}. Update the package that it comes from."
        ) from error
    if not isinstance(adapter, Adapter):
        raise UnsupportedModelError(
            f"{expected}, a subclass of globalcom2.adapters.base.Adapter, got {target}, which makes {adapter!r:.60}. "
            "Update the package that it comes from."
        )
    return adapter
