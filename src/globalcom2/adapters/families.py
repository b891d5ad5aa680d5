"""The registry of model families: which adapter belongs to which model type.

Adapters are imported when they are asked for, and nothing here imports torch, so that listing families is instant.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from globalcom2.errors import UnsupportedModelError

if TYPE_CHECKING:
    from globalcom2.adapters.base import Adapter


@dataclass(frozen=True)
class Family:
    """One model family. All but the first two entries are texts for the table of `globalcom2 models`."""

    model_type: str
    """`model.config.model_type`."""
    target: str
    """The adapter, as "module:Class"."""
    scores: str
    """Where the tokens' scores come from."""
    thumbnail: str
    """Where the thumbnail stands in the prompt."""
    tested: str
    """What the family was tested with."""
    budget: str = "exact"
    """What the budget covers."""


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
        ),
        Family(
            "llava_next_video",
            "globalcom2.adapters.llava_next_video:LlavaNextVideoAdapter",
            "[CLS] row of the CLIP tower, in the layer of the features; in videos the mean over a token's patches",
            "first; of a video, the pooled clip guides and is not read",
            "random weights; videos as tensors, their processor needs torchvision",
            "exact, newlines included",
        ),
        Family(
            "granite4_vision",
            "globalcom2.adapters.granite4_vision:Granite4VisionAdapter",
            "minus cosine to the mean of the view (SigLIP tower without [CLS]), averaged over a token's patches",
            "first",
            "random weights",
            "exact, newlines included",
        ),
        Family(
            "llava_onevision",
            "globalcom2.adapters.llava_onevision:LlavaOnevisionAdapter",
            "minus cosine to the mean of the view (SigLIP tower without [CLS])",
            "first; of a video, the pooled clip guides and is not read",
            "random weights; videos as tensors, their processor needs torchvision",
            "exact, newlines included; several images in a prompt have no crops",
        ),
        Family(
            "idefics3",
            "globalcom2.adapters.idefics3:Idefics3Adapter",
            "minus cosine to the mean of the view (SigLIP tower without [CLS])",
            "last",
            "random weights",
            "exact; tags between views stay and are not counted; grid from the tags",
        ),
        Family(
            "smolvlm",
            "globalcom2.adapters.idefics3:Idefics3Adapter",
            "minus cosine to the mean of the view (SigLIP tower without [CLS])",
            "last",
            "random weights",
            "exact; tags between views stay and are not counted; grid from the tags",
        ),
        Family(
            "llama4",
            "globalcom2.adapters.llama4:Llama4Adapter",
            "[CLS] row of the last layer of its own tower, mean over the patches of a token",
            "last",
            "random weights; the real processor around a stand-in for its image processor (needs torchvision); not with "
            "transformers 5.24.0, in which the model fails by itself",
            "exact; tags between views stay and are not counted; grid from the tags",
        ),
        Family(
            "ovis2",
            "globalcom2.adapters.ovis2:Ovis2Adapter",
            "minus cosine to the mean of the view (tower without [CLS])",
            "first",
            "random weights",
            "exact; tags between views stay and are not counted; grid from the tags",
        ),
        Family(
            "internvl",
            "globalcom2.adapters.internvl:InternVLAdapter",
            "[CLS] row of the InternViT tower, in the layer of the features, mean over the patches of a token",
            "last",
            "random weights with the real processor; videos not",
            "exact; grid from the pixels, equal crops where these do not tell",
        ),
        Family(
            "qianfan_ocr",
            "globalcom2.adapters.internvl:QianfanOCRAdapter",
            "[CLS] row of the tower, in the layer of the features, mean over the patches of a token",
            "last",
            "random weights with the real processor",
            "exact; grid from the pixels, equal crops where these do not tell",
        ),
        Family(
            "aya_vision",
            "globalcom2.adapters.cohere:AyaVisionAdapter",
            "similarity of projected features; no [CLS]",
            "last",
            "random weights with the real processor",
            "exact; tags stay and are not counted; grid from the pixels, equal crops where these do not tell",
        ),
        Family(
            "cohere2_vision",
            "globalcom2.adapters.cohere:Cohere2VisionAdapter",
            "similarity of projected features; no [CLS]",
            "last",
            "random weights with the real processor, but a stand-in for its image processor, which needs torchvision",
            "exact; tags stay and are not counted; grid from the pixels, equal crops where these do not tell",
        ),
        Family(
            "got_ocr2",
            "globalcom2.adapters.got_ocr2:GotOcr2Adapter",
            "similarity of projected features alone; no [CLS], windowed attention",
            "last",
            "random weights with the real processor; one page per prompt",
            "exact; grid from the pixels, equal crops where these do not tell",
        ),
        Family(
            "lfm2_vl",
            "globalcom2.adapters.lfm2_vl:Lfm2VlAdapter",
            "similarity of projected features (SigLIP 2 tower without [CLS])",
            "last, with its own token grid",
            "random weights; the real processor around a stand-in for its image processor, which needs torchvision",
            "exact; tags between views stay and are not counted; grid from the tags",
        ),
        Family(
            "minicpmv4_6",
            "globalcom2.adapters.minicpmv4_6:MiniCPMV46Adapter",
            "similarity of projected features (SigLIP tower without [CLS])",
            "first, with its own token grid",
            "random weights; videos not",
            "exact; tags between views stay and are not counted; grid from the tags",
        ),
        Family(
            "step3p7",
            "globalcom2.adapters.step3p7:Step3p7Adapter",
            "similarity of projected features (its own tower, without [CLS])",
            "last, with its own token grid",
            "random weights; the real processor around a stand-in for its image processor, which needs torchvision",
            "exact; tags between views stay and are not counted; grid from the tags",
        ),
    )
}

UNSUPPORTED = {
    "deepseek_ocr2": "its tokens are learned queries, which have no place in the image",
    "gemma3": "pan-and-scan crops do not tile the image, and text stands between them",
    "gemma3n": "it has no crops",
    "idefics2": "its tokens are latents of a resampler, which have no place in the image",
    "minicpmv4_7": "positions of its tokens follow from all views of an image together, so dropping some moves the rest",
    "mllama": "it reads images by cross-attention: there are no visual tokens in the prompt, and no thumbnail",
    "molmo2": "overlapping crops are stitched into one map before tokens are pooled",
    "perception_lm": "its tower is a timm model, which was not at hand, and nothing tells its grid; not built yet",
    "phi4_multimodal": "its forward takes no encoder output and merges images in a way of its own",
    "qwen2_vl": "images keep their resolution: no thumbnail, no crops",
    "qwen2_5_vl": "images keep their resolution: no thumbnail, no crops",
    "qwen3_vl": "images keep their resolution: no thumbnail, no crops",
    "unlimited_ocr": "lines of the thumbnail end with newlines too, and a separator follows, which no budget knows yet",
}
"""Families that cut images, or seem to, and do not work with this package, with the reason."""


def list_models() -> list[str]:
    """Model types (`model.config.model_type`) that `compress` accepts."""
    return sorted(_FAMILIES)


def get_family(model_type: str) -> Family:
    """The family of that model type.

    Raises:
        UnsupportedModelError: The family is not supported; the message lists those that are, and says why where known.
    """
    if model_type in UNSUPPORTED:
        raise UnsupportedModelError(
            f"model must be of a supported family ({', '.join(list_models())}), got model_type {model_type!r}: "
            f"{UNSUPPORTED[model_type]}."
        )
    if model_type not in _FAMILIES:
        raise UnsupportedModelError(
            f"model must be of a supported family ({', '.join(list_models())}), got model_type {model_type!r}. "
            "See the models table for what is planned."
        )
    return _FAMILIES[model_type]


def load_adapter(model_type: str) -> Adapter:
    """An instance of the family's adapter."""
    module, _, name = get_family(model_type).target.partition(":")
    adapter: Adapter = getattr(importlib.import_module(module), name)()
    return adapter


def markdown_tables() -> str:
    """The page docs/models.md: supported families, and others with the reason why not."""
    columns = ("model_type", "scores", "thumbnail", "budget", "tested")
    lines = [
        "# Model families",
        "",
        "Made by `globalcom2 models --markdown`. No published checkpoint was at hand. Every family was tested with random",
        "weights and the real processor by one matrix of tests (`tests/adapters/test_families.py`), llava_next with the",
        "trained mini model too.",
        "",
        "| " + " | ".join(column.replace("_", " ") for column in columns) + " |",
        "|" + "---|" * len(columns),
    ]
    for name in list_models():
        lines.append("| " + " | ".join(str(getattr(get_family(name), column)) for column in columns) + " |")
    lines += ["", "## Not supported", "", "| model type | why |", "|---|---|"]
    lines += [f"| {name} | {why} |" for name, why in sorted(UNSUPPORTED.items())]
    return "\n".join(lines)
