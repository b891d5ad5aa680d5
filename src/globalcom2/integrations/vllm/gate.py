"""Refuses an engine that was asked to compress and would not. vLLM serves a model that no plugin knows as it is.

A plugin is called before there is a model, so it has a look at vLLM's `ModelConfig` when one has been made: there is no
other place that every way to start an engine passes before the weights are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from globalcom2.errors import UnsupportedModelError
from globalcom2.integrations.vllm.names import PREFIX, check_names, meant
from globalcom2.integrations.vllm.options import ASKED, ENGINE_KEYS, Options

_AT_THE_TOP = dict.fromkeys(ENGINE_KEYS, "hf_overrides itself")
WHOLE = "Leave globalcom2's settings out, or set VLLM_PLUGINS='', to serve it with all of its tokens."


def install(models: Iterable[str], reason: str | None = None) -> None:
    """Have every `ModelConfig` of this process checked once it is complete. The last call alone counts.

    Args:
        models: Architectures that the plugin compresses.
        reason: Why no model is compressed; None where the plugin's models are registered.
    """
    from vllm.config import ModelConfig  # noqa: PLC0415

    original = getattr(ModelConfig.__post_init__, "globalcom2_original", ModelConfig.__post_init__)

    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        check(self, models, reason)

    checked.globalcom2_original = original  # type: ignore[attr-defined]
    ModelConfig.__post_init__ = checked


def check(model: Any, models: Iterable[str], reason: str | None = None) -> None:
    """Raise unless what a `ModelConfig` asks of globalcom2 will be done.

    Args:
        model: vLLM's `ModelConfig`, complete.
        models: See `install`.
        reason: See `install`.

    Raises:
        InputError: A misspelt setting, or one out of range.
        UnsupportedModelError: Compression of a model that the plugin does not replace.
    """
    if getattr(model, "runner_type", None) == "draft":  # a draft model reads what the target model has compressed
        return
    config = model.hf_config
    own = [name for name in vars(config) if name.lower().startswith(PREFIX)]
    overrides = model.hf_overrides if isinstance(model.hf_overrides, Mapping) else {}
    check_names("hf_overrides", overrides, ENGINE_KEYS)
    for name, inner in overrides.items():
        check_names(f"{name} of hf_overrides", inner if isinstance(inner, Mapping) else (), (), _AT_THE_TOP)
    check_names("the model's configuration", own, ENGINE_KEYS)
    multimodal = getattr(model, "multimodal_config", None)
    check_names("mm_processor_kwargs", getattr(multimodal, "mm_processor_kwargs", None) or {}, ASKED)
    if not own and not model.is_multimodal_model:
        return  # the environment may speak of images, and this model sees none
    options = Options.of(config)
    if options.compresses or options.per_request:
        _check_model(model.architecture, models, reason)


def _check_model(architecture: str, models: Iterable[str], reason: str | None) -> None:
    from vllm import ModelRegistry  # noqa: PLC0415

    if reason is not None:
        raise UnsupportedModelError(f"globalcom2 would compress nothing here: {reason} {WHOLE}")
    if not is_ours(ModelRegistry.models.get(architecture)):
        raise UnsupportedModelError(
            f"model must be one that globalcom2's vLLM plugin compresses ({', '.join(models)}), got {architecture}: vLLM "
            f"would serve it with all of its tokens. {WHOLE}"
        )
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise UnsupportedModelError(
            "VLLM_USE_RUST_FRONTEND must be off with globalcom2, got it on: that front end counts an image's tokens itself, "
            "and runs no plugin. Unset it."
        )


def is_ours(entry: Any) -> bool:
    """Whether an entry of vLLM's registry of models is a class of this plugin."""
    found = getattr(entry, "module_name", None) or getattr(getattr(entry, "model_cls", None), "__module__", "")
    return str(found).startswith(f"{__package__}.")


def check_environment(others: Iterable[str]) -> None:
    """Raise for a variable that was meant to be one of ours.

    Variables of others may begin with our name, too: a cluster tells all that run in it a service's address in this way.

    Args:
        others: Our variables that are no setting of an engine.

    Raises:
        InputError: With the right name.
    """
    known = [*(name.upper() for name in ENGINE_KEYS), *others]
    names = [name for name in os.environ if name.upper().startswith(PREFIX.upper())]
    check_names("the environment", [name for name in names if meant(name, known)], known)
