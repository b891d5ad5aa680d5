"""Lays the Python files of a release of vLLM over a CPU build of an older one: python overlay.py PYTHON FOLDER

For a release that has no wheel for CPUs yet. The Python files of vLLM's own wheel go to the folder. Its libraries are for CUDA,
so those of the CPU build take their places. With PYTHONPATH=FOLDER, PYTHON then runs the release. PYTHON belongs to an
environment that `environment.py` made, which stays as it is:

    python tests/engine/overlay.py .venv-vllm/bin/python .venv-vllm/next
    PYTHONPATH=.venv-vllm/next .venv-vllm/bin/python -m pytest tests/engine -m "not slow"

That works as long as the Python files ask nothing new of the libraries, so it is a test of the plugin's ground and no way to
serve anyone.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "0.33.0"
MORE = ("orjson",)  # what the release imports on a CPU and the older one does not ask for
KINDS = (".py", ".json", ".jinja")
# `vllm serve` takes the distribution for a CPU build only if its version says "cpu".
METADATA = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"


def main(python: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    found = "import importlib.util as u; print(u.find_spec('vllm').submodule_search_locations[0])"
    built = Path(subprocess.run([python, "-c", found], check=True, capture_output=True, text=True).stdout.strip())
    with tempfile.TemporaryDirectory() as scratch:
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "download", "--no-deps", "-d", scratch, f"vllm=={VERSION}"], check=True)
        (wheel,) = Path(scratch).glob("vllm-*.whl")
        lay(wheel, built, folder)
    subprocess.run([*pip, "install", "--no-deps", "--target", folder, *MORE], check=True)


def lay(wheel: Path, built: Path, folder: Path) -> None:
    """Unpack the wheel's package into the folder, with the libraries of the package at `built` in place of its own."""
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        packed.extractall(folder, [n for n in names if n.startswith("vllm/") and n.endswith(KINDS)])
        asked = next(n for n in names if n.endswith(".dist-info/entry_points.txt"))
        told = folder / f"vllm-{VERSION}+cpu.dist-info"
        told.mkdir()
        (told / "METADATA").write_text(METADATA)
        (told / "entry_points.txt").write_bytes(packed.read(asked))
    for library in built.rglob("*.so"):
        target = folder / "vllm" / library.relative_to(built)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
