"""Loads a model and its processor by name, checking the family before any weight is read."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from globalcom2.adapters.families import get_family
from globalcom2.errors import InputError, unknown_name
from globalcom2.mini import FOLDERS, load_mini, mini_processor

MINIS = {"mini": "tiled", "mini-native": "native"}
"""Names of the models that ship with the package, and what `load_mini` calls them."""
# To suggest a name when one is mistyped; any checkpoint of a supported family loads.
KNOWN_CHECKPOINTS = (
    *MINIS,
    "llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava-hf/llava-v1.6-vicuna-13b-hf",
    "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava-hf/llava-v1.6-34b-hf",
    "llava-hf/llama3-llava-next-8b-hf",
    "llava-hf/llava-next-72b-hf",
)
DTYPES = ("auto", "float32", "float16", "bfloat16")


def load_model(name: str, dtype: str = "auto", device: str = "auto", attn: str | None = None) -> tuple[Any, Any]:
    """A model in eval mode and its processor.

    Args:
        name: "mini", "mini-native", a folder with a checkpoint, or a name on the hub.
        dtype: "float32", "float16", "bfloat16"; "auto" is float32 on a CPU and the checkpoint's own elsewhere.
        device: "cpu", "cuda", "cuda:1", ...; "auto" is CUDA where there is one.
        attn: transformers' `attn_implementation`; None leaves the choice to transformers.

    Returns:
        (model, processor).

    Raises:
        InputError: An unknown name, dtype, device or attention implementation, or a processor that cannot be loaded.
        UnsupportedModelError: A family without an adapter.
    """
    target = _device(device)
    kwargs = _arguments(dtype, target, attn)
    load_config(name)
    if name in MINIS:
        model, processor = load_mini(MINIS[name], **kwargs)
    else:
        processor = load_processor(name)  # before the weights, which take longer
        model = AutoModelForImageTextToText.from_pretrained(name, **kwargs).eval()
    return model.to(target), processor


def files_of(name: str) -> str | Path:
    """Where a model's files are: the folder of a mini, else the name itself."""
    return FOLDERS[MINIS[name]] if name in MINIS else name


def load_processor(name: str) -> Any:
    """A model's processor.

    Args:
        name: "mini", "mini-native", a folder with a checkpoint, or a name on the hub.

    Raises:
        InputError: It cannot be loaded, for example since the folder has the configuration alone, or since transformers
            needs a library for it that is not installed.
    """
    try:
        if name in MINIS:
            return mini_processor(MINIS[name])
        return AutoProcessor.from_pretrained(name)
    except ImportError as error:
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        raise InputError(
            f"model must have a processor whose libraries are installed, got {name!r}, of which transformers says: "
            f"{reason:.300}. Install what is missing, for example with `pip install torchvision`."
        ) from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"model must come with its processor's files, got {name!r}, whose processor could not be loaded: {reason:.300}"
        ) from error


def random_model(config: Any, dtype: str = "auto", device: str = "auto", attn: str | None = None) -> Any:
    """A model with random weights in eval mode.

    Args:
        config: A supported model's configuration.
        dtype: As in `load_model`; "auto" is bfloat16 on CUDA and float32 on a CPU.
        device: As in `load_model`.
        attn: As in `load_model`.
    """
    target = _device(device)
    kwargs = _arguments(dtype, target, attn)
    if kwargs["dtype"] == "auto":
        kwargs["dtype"] = torch.bfloat16
    with target:
        return AutoModelForImageTextToText.from_config(config, **kwargs).eval()


def _arguments(dtype: str, target: torch.device, attn: str | None) -> dict[str, Any]:
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    if attn is not None and attn != "eager" and "/" not in attn and attn not in ALL_ATTENTION_FUNCTIONS:
        raise unknown_name("attn", attn, ["eager", *(name for name in ALL_ATTENTION_FUNCTIONS if "|" not in name)])
    kwargs: dict[str, Any] = {"dtype": dtype}
    if dtype == "auto" and target.type == "cpu":
        kwargs["dtype"] = torch.float32
    elif dtype != "auto":
        kwargs["dtype"] = getattr(torch, dtype)
    if attn is not None:
        kwargs["attn_implementation"] = attn
    return kwargs


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError:
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}.") from None
    if target.type not in ("cpu", "cuda"):
        raise InputError(
            f"device must be auto, cpu, cuda or cuda:N, got {device!r}. Nothing here was tried on other devices: use cpu, "
            "or load the model yourself and call compress on it."
        )
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        here = torch.cuda.device_count()
        cure = f"Use cuda:0 to cuda:{here - 1}." if here else "Use cpu."
        raise InputError(f"device must be available, got {device!r} on a machine with {here} CUDA devices. {cure}")
    return target


def load_config(name: str, also: Iterable[str] = ()) -> Any:
    """A model's configuration, checked to be of a supported family, without its weights.

    Args:
        name: "mini", "mini-native", a folder with a checkpoint, or a name on the hub.
        also: Further names that the caller knows, to be suggested when this one is mistyped.

    Raises:
        InputError: An unknown name, or a configuration that cannot be opened.
        UnsupportedModelError: A family without an adapter.
    """
    known = (*also, *KNOWN_CHECKPOINTS)
    near = [] if name in known else difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    if "/" not in name and name not in MINIS and not Path(name).is_dir():
        here = ", ".join((*MINIS, *also))
        raise InputError(
            f"model must be {here}, a folder with a checkpoint or a hub name such as owner/name, got {name!r}.{hint}"
        )
    try:
        config = AutoConfig.from_pretrained(files_of(name))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in (
            "1",
            "ON",
            "YES",
            "TRUE",
        ):  # what huggingface_hub takes for yes
            hint += " HF_HUB_OFFLINE is set: unset it to download, or give a folder with the checkpoint."
        raise InputError(
            f"model must be 'mini', a folder with a checkpoint or a name on the hub, got {name!r}, which could not be "
            f"opened: {reason}{hint}"
        ) from error
    get_family(config.model_type)
    return config
