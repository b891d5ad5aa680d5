"""Settings on disk: `compression_config.json`, and the keys that a model's own `config.json` keeps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from globalcom2._version import __version__
from globalcom2.errors import DataError, InputError

FILE = "compression_config.json"
RETENTION = "globalcom2_retention"
"""Key of a model's `config.json`, which vLLM's plugin reads: the ratio."""
METHOD = "globalcom2_method"
"""The same for the method, with options as the command line has them."""
LIMIT = "globalcom2_max_visual_tokens"
"""The same for the most visual tokens of an image; `METHOD` may say it, too."""
FORMAT = 2
"""Raised when an older version can no longer read what is written."""
ABOUT = ("format_version", "globalcom2_version")
"""Keys of a file that are no settings."""


def write_settings(folder: str | os.PathLike[str], settings: dict[str, Any]) -> Path:
    """Write plain settings into a folder, which is made if need be, and return the file's path.

    Raises:
        InputError: An option that JSON does not give back as it was, or a folder that cannot be written to.
    """
    path = _path(folder, "folder")
    if path.exists() and not path.is_dir():
        raise InputError(f"folder must be a folder, got the file {str(path)!r}. {FILE} is put into it.")
    for name, value in settings.get("options", {}).items():
        if not _is_json(value):
            raise InputError(
                f"options must be numbers, texts, lists and the like to be saved, got {name}={value!r}. Leave it out, and "
                "pass it to compress()."
            )
    about = dict(zip(ABOUT, (FORMAT, __version__), strict=True))
    text = json.dumps({**settings, **about}, indent=2, sort_keys=True) + "\n"
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / FILE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"folder must be one that can be written to, got {str(path)!r}: {error.strerror}. Choose another one."
        ) from error
    return path / FILE


def read_settings(name: str | os.PathLike[str]) -> tuple[dict[str, Any], Path]:
    """Plain settings of a file, of a folder or of a repository on the hub, and the file that they are from.

    Raises:
        InputError: There is none.
        DataError: A file that cannot be read, or of a newer format.
    """
    path = find_settings(name)
    found = _json(path)
    if path.name == "config.json":
        if RETENTION not in found:
            raise InputError(
                f"name must be a config.json that has {RETENTION}, got {str(path)!r}, which has none. "
                "CompressionConfig.attach(model) puts it there before the model is saved."
            )
        return {"retention_ratio": found[RETENTION], "method": found.get(METHOD, "globalcom2")}, path
    version = found.get(ABOUT[0], 1)
    if type(version) is not int or not 1 <= version <= FORMAT:
        raise DataError(
            f"format_version in {str(path)!r} must be 1 to {FORMAT}, got {version!r}, written by globalcom2 "
            f"{found.get(ABOUT[1], 'of an unknown version')}. Update globalcom2, which is {__version__} here."
        )
    settings = {key: value for key, value in found.items() if key not in ABOUT}
    if version == 1 and settings.get("positions") == "closed":  # the default then, written out
        del settings["positions"]
    return settings, path


def find_settings(name: str | os.PathLike[str]) -> Path:
    """The file with the settings of a file's, a folder's or a hub repository's name. Raises `InputError` without one."""
    path = _path(name, "name")
    if path.is_file():
        return path
    if path.is_dir():
        found = settings_in(path)
        if found is None:
            raise InputError(
                f"name must be a folder with {FILE}, or with a config.json that has {RETENTION}, got {str(path)!r}, which has "
                "neither. CompressionConfig.save_pretrained(folder) writes one."
            )
        return found
    text = str(name)
    if path.is_absolute() or text.startswith((".", "~")) or path.suffix == ".json" or text.count("/") > 1:
        raise InputError(f"name must be an existing file or folder, or a name on the hub, got {text!r}.")
    from transformers.utils import cached_file  # noqa: PLC0415

    try:
        return Path(cached_file(text, FILE))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"name must be a file, a folder or a repository on the hub with {FILE}, got {text!r}: {reason}"
        ) from error


def settings_in(folder: Path) -> Path | None:
    """The file in a folder that has settings: `compression_config.json`, else a model's `config.json`. None without."""
    own, of_model = folder / FILE, folder / "config.json"
    if own.is_file():
        return own
    return of_model if of_model.is_file() and RETENTION in _json(of_model) else None


def _path(given: str | os.PathLike[str], argument: str) -> Path:
    try:
        return Path(given)
    except TypeError:
        raise InputError(f"{argument} must be a path, got {given!r}.") from None


def _is_json(value: Any) -> bool:
    """Whether JSON gives a value back as it was."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError, RuntimeError):  # no such type; circles; a tensor that cannot be compared
        return False


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} must be a file of JSON, got {type(error).__name__}: {error}.") from error
    if not isinstance(found, dict):
        raise DataError(f"{str(path)!r} must hold a JSON object, got {type(found).__name__}.")
    return found
