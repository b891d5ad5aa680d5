"""Builds the sdist and the wheel into dist/ and tries both: python tests/distribution.py [--tests]

In a checkout the last commit is built, so that nothing uncommitted goes in. The sdist must hold every file that git
tracks, the wheel every file of the package. The wheel is installed into a fresh environment, where `globalcom2 ask` must
answer. With --tests the sdist is unpacked and installed, and its own tests run there. Needs a package index.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = "src/globalcom2/"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", action="store_true", help="run the sdist's own tests too: several minutes")
    parser.add_argument("--out", type=Path, default=PROJECT / "dist", help="folder for the two files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="globalcom2-dist-") as temporary:
        folder = Path(temporary)
        tools = environment(folder / "tools", "build", "twine")
        sdist, wheel = build(tools, exported(folder), arguments.out)
        compare(sdist, wheel)
        run(tools, "-m", "twine", "check", "--strict", sdist, wheel)
        user = environment(folder / "user", str(wheel), torch=True)
        try_wheel(user, folder)
        if arguments.tests:
            test_sdist(user, sdist, folder)
    print(f"dist: {sdist} and {wheel} are good.")


def run(python: Path, *arguments: object, cwd: Path | None = None) -> str:
    """Standard output of a Python program; what it says on standard error is passed on."""
    command = [str(python), *map(str, arguments)]
    print("dist:", *command, file=sys.stderr, flush=True)
    return subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout


def environment(folder: Path, *packages: str, torch: bool = False) -> Path:
    """The Python of a new environment with these packages."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    if torch:  # first and alone: the index may serve a CPU wheel for the pinned version only
        install += ("-c", PROJECT / "constraints.txt")
        run(python, *install, "torch")
    run(python, *install, *packages)
    return python


def tracked() -> set[str] | None:
    """The files of the last commit, None where this is no checkout."""
    if not (PROJECT / ".git").exists():
        return None
    command = ["git", "-C", str(PROJECT), "ls-tree", "-r", "-z", "--name-only", "HEAD"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")) - {""}


def exported(folder: Path) -> Path:
    """The last commit's files in a folder of their own; this folder where it is no checkout."""
    if tracked() is None:
        return PROJECT
    archive = folder / "commit.tar"
    subprocess.run(["git", "-C", str(PROJECT), "archive", "-o", str(archive), "HEAD"], check=True)
    return unpacked(archive, folder / "commit")


def unpacked(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


def build(tools: Path, source: Path, out: Path) -> tuple[Path, Path]:
    """The sdist of a folder, and the wheel that is built from that sdist."""
    run(tools, "-m", "build", "--outdir", out, source)
    version: dict[str, str] = {}
    exec((source / PACKAGE / "_version.py").read_text(), version)
    name = f"globalcom2-{version['__version__']}"
    return out / f"{name}.tar.gz", out / f"{name}-py3-none-any.whl"


def compare(sdist: Path, wheel: Path) -> None:
    """What is inside: all that git tracks, and nothing else."""
    with tarfile.open(sdist) as tar:
        in_sdist = {name.partition("/")[2] for name in tar.getnames()} - {"PKG-INFO"}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {f"src/{name}" for name in archive.namelist() if ".dist-info/" not in name}
    wanted = tracked() or in_sdist
    differ("the sdist", in_sdist, wanted)
    differ("the wheel", in_wheel, {name for name in wanted if name.startswith(PACKAGE)})


def differ(what: str, found: set[str], wanted: set[str]) -> None:
    if found != wanted:
        raise SystemExit(f"{what} lacks {sorted(wanted - found)} and has too much {sorted(found - wanted)}.")


def try_wheel(python: Path, folder: Path) -> None:
    """The installed command answers, from a folder where no source lies."""
    where = folder / "elsewhere"
    where.mkdir()
    answer = json.loads(run(python, "-m", "globalcom2", "ask", "--json", cwd=where))
    kept, of = answer["compressed"]["visual_tokens"], answer["full"]["visual_tokens"]
    if not answer["compressed"]["answer"] or not kept < of:
        raise SystemExit(f"The wheel's `globalcom2 ask` must answer with fewer tokens, got {answer}.")
    installed = run(python, "-c", "import globalcom2; print(globalcom2.__file__)", cwd=where).strip()
    if not Path(installed).is_relative_to(folder):
        raise SystemExit(f"The wheel must be what is tried, got {installed}.")
    print(f"dist: the wheel answers {answer['compressed']['answer']!r} with {kept} of {of} visual tokens.")


def test_sdist(python: Path, sdist: Path, folder: Path) -> None:
    """Its tests, run where it was unpacked."""
    (root,) = unpacked(sdist, folder / "sdist").iterdir()
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", root / "constraints.txt")
    run(python, *install, f"{root}[test]")
    subprocess.run([python, "-m", "pytest", "-n", "2", "-q"], cwd=root, check=True)


if __name__ == "__main__":
    main()
