"""Describes the machine and the versions that figures were measured with, for every result file."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from globalcom2._version import __version__

PACKAGE = Path(__file__).resolve().parents[1]


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware, threads, versions, date, and the commit that ran (None for an installed package)."""
    cuda = device.type == "cuda"
    return {
        "hardware": torch.cuda.get_device_name(device) if cuda else f"{processor_name()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "globalcom2": __version__},
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def processor_name() -> str:
    """The CPU's own name on Linux, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str | None:
    """The commit of the checkout that this package is imported from, with "-dirty" if files differ; None outside of one."""
    if not (PACKAGE.parent.parent / ".git").exists():  # not one that merely holds the environment
        return None
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
