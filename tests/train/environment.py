"""Makes an environment with the trainers that tests/train uses: python environment.py FOLDER

torch goes in first and alone, in the pinned version: an index may serve a CPU wheel for that one only, and a package that
asks for another torch would bring several gigabytes of CUDA. The lowest version of PEFT that pyproject.toml allows goes to
a folder of its own, FOLDER/lowest, which the tests of PEFT put before the newest one.
"""

import re
import subprocess
import sys
import venv
from pathlib import Path

PROJECT = Path(__file__).parents[2]
LOWEST = "lowest"


def main(folder: Path) -> None:
    python = folder / "bin" / "python"
    constrained = ("-c", str(PROJECT / "constraints.txt"))

    def install(*arguments: str) -> None:
        quiet = ("--quiet", "--disable-pip-version-check")
        subprocess.run([python, "-m", "pip", "install", *quiet, *arguments], check=True)

    venv.create(folder, with_pip=True)
    install(*constrained, "torch")
    install(*constrained, "-e", f"{PROJECT}[trainers]", "pytest")
    install("--no-deps", "--upgrade", "--target", str(folder / LOWEST), f"peft=={lowest_peft()}")


def lowest_peft() -> str:
    """The lowest version that pyproject.toml allows."""
    found = re.search(r'"peft>=([\d.]+)', (PROJECT / "pyproject.toml").read_text())
    if found is None:
        raise SystemExit("pyproject.toml must ask for peft>=VERSION, got no such line.")
    version = found.group(1)
    return version if version.count(".") == 2 else f"{version}.0"


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
