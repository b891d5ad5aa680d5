"""vLLM plugin: image prompts of an engine are simply shorter.

`register` is the entry point `globalcom2` of the group `vllm.general_plugins`. It puts subclasses in the place of
vLLM's own model classes; with a retention ratio of 1 they do what vLLM does. Nothing here imports vLLM until vLLM asks for it.

Engine-wide settings are attributes of the model's configuration, so `--hf-overrides '{"globalcom2_retention": 0.1}'`
sets them, and so do environment variables (`GLOBALCOM2_RETENTION`); see `options`.
"""

from __future__ import annotations

import contextlib
import os
import warnings

from globalcom2.errors import UnsupportedModelError

TESTED = ((0, 32), (0, 34))
"""The versions of vLLM that the tests ran with, as (major, minor): at least the first, and below the second."""
ANY_VERSION = "GLOBALCOM2_ANY_VLLM"
"""The variable that tries a version of vLLM that the tests did not run with."""
MODELS = {
    "LlavaNextForConditionalGeneration": "anyres:LlavaNext",
    "LlavaOnevisionForConditionalGeneration": "anyres:LlavaOnevision",
    "InternVLChatModel": "internvl:InternVLChat",
    "InternVLForConditionalGeneration": "internvl:InternVL",
    "Idefics3ForConditionalGeneration": "tagged:Idefics3",
    "SmolVLMForConditionalGeneration": "tagged:SmolVLM",
    "Qwen2VLForConditionalGeneration": "native:Qwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "native:Qwen25VL",
    "Qwen3VLForConditionalGeneration": "native:Qwen3VL",
}
"""vLLM's architecture names, and the class that takes the place of each: `module:Class` in this folder."""


def check_version(version: str) -> None:
    """Raise for a vLLM that the plugin was not tested with, unless `ANY_VERSION` is set.

    vLLM changes what the plugin builds on from one minor version to the next, without notice.

    Raises:
        UnsupportedModelError: With the versions that it was tested with.
    """
    least, below = TESTED
    found = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    if not least <= found < below and not os.environ.get(ANY_VERSION):
        raise UnsupportedModelError(
            f"vllm must be at least {least[0]}.{least[1]} and below {below[0]}.{below[1]} for globalcom2's plugin, got "
            f"{version}. Install a version in between, or set {ANY_VERSION}=1 to try this one."
        )


def register() -> None:
    """Put the plugin's classes into vLLM's registry. Every process of an engine calls this, perhaps more than once.

    Raises:
        UnsupportedModelError: A vLLM out of the tested range while GLOBALCOM2_RETENTION asks for compression. Without
            that variable there is a warning, and vLLM runs as if the plugin were not installed, but for engines whose
            model's configuration asks for compression: they do not start.
        InputError: A misspelt variable.
    """
    import vllm  # noqa: PLC0415
    from vllm import ModelRegistry  # noqa: PLC0415

    from globalcom2.integrations.vllm.gate import check_environment, install  # noqa: PLC0415

    check_environment([ANY_VERSION])
    try:
        check_version(vllm.__version__)
    except UnsupportedModelError as error:
        if "GLOBALCOM2_RETENTION" in os.environ:
            raise
        warnings.warn(f"globalcom2 compresses nothing: {error}", stacklevel=2)
        with contextlib.suppress(ImportError, AttributeError):  # who knows what this version has
            install(MODELS, str(error))
        return
    for name, target in MODELS.items():
        ModelRegistry.register_model(name, f"{__name__}.{target}")
    install(MODELS)
