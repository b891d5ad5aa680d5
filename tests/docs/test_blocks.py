"""Every block of README and docs runs, with the mini model: `make test-docs`.

The blocks of a page run in order, in one folder. Its Python blocks share their names, as if a reader pasted them one after
the other. What stands for what this machine has not is in the tables below.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import matplotlib
import pytest
from docpages import PAGES, ROOT, blocks_of, commands_of, name_of

from command import call
from globalcom2.mini import DEMO_PICTURE, EVALUATION_SET, FOLDER, demo_picture

CHECKPOINTS = ("llava-hf/llava-v1.6-vicuna-7b-hf", "llava-hf/llava-v1.6-mistral-7b-hf")
"""Names on the hub. The mini model stands for each of them."""
WORDS = {"MODEL": "mini", **dict.fromkeys(CHECKPOINTS, "mini")}
"""Words of commands, and what stands for them."""
SHORTER = {
    "eval": {"--pictures": "2"},
    "analyze": {"--pictures": "2"},
    "tune": {"--pictures": "8", "--max-loss": "90%", "--choosing": "0.3", "--retention": "0.5", "--method": "uniform"},
    "bench": {"--model": "mini", "--rounds": "1", "--new-tokens": "2", "--batch-size": "1", "--device": "cpu"},
}
"""Options that make a command short; given ones are replaced."""
FEWER = {"eval": {"--retention": "0.1"}}
"""Options that stand for many by default; given ones stay."""
DRY = ("serve",)
"""Commands that only say what they would do."""
SHAPE = {"git": ("clone",), "cd": (), "vllm": ("serve",)}
"""Commands that are not run: the first words that they may have."""
INSTALLED = ("examples/selector", "examples/family")
"""Packages that a reader has installed."""
PICTURES = ("photo.jpg", "page.png", "photos/one.jpg", "photos/two.png")
"""Files of a reader."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A reader's folder, with pictures and a file of questions."""
    for name in PICTURES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        demo_picture().save(tmp_path / name)
    shutil.copy(DEMO_PICTURE, tmp_path / "demo.png")
    rows = [{"image": name, "question": "What number is on the orange triangle?"} for name in PICTURES[2:]]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for package in INSTALLED:
        monkeypatch.syspath_prepend(ROOT / package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    matplotlib.use("Agg")
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=name_of)
def test_blocks_run(page, folder, capsys):
    names = {"__name__": "docs"}
    for block in blocks_of(page):
        if block.reason is not None:
            continue
        if block.language == "python":
            text = block.text
            for checkpoint in CHECKPOINTS:
                text = text.replace(checkpoint, str(FOLDER))
            exec(compile("\n" * (block.line) + text, block.page, "exec"), names)
        elif block.language in ("console", "bash"):
            for words in commands_of(block):
                run(words, f"{block}: {' '.join(words)}", capsys)


def run(words, where, capsys):
    """Run one command, or check what can be checked of it."""
    match words:
        case ["globalcom2", *_]:
            run_globalcom2(words, where, capsys)
        case ["pip", "install", *rest] | ["python", "-m", "pip", "install", *rest]:
            check_pip(rest, where)
        case ["make", *targets]:
            known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(targets) <= set(known), where
        case ["python", "-m", "pytest", *rest]:
            assert all((ROOT / word).exists() for word in rest if "/" in word), where
        case ["python", script, *_]:
            assert (ROOT / script).is_file(), where
        case [program, *rest] if program in SHAPE:
            assert tuple(rest[: len(SHAPE[program])]) == SHAPE[program], where
        case _:
            pytest.fail(f"{where}: an unknown command. Mark the block as not run, with the reason.")


def run_globalcom2(words, where, capsys):
    command, *rest = (WORDS.get(word, word) for word in words[1:])
    for option, value in SHORTER.get(command, {}).items():
        rest = with_option(rest, option, value)
    for option, value in FEWER.get(command, {}).items():
        rest += [] if option in rest else [option, value]
    if "mine.parquet" in rest and not Path("mine.parquet").exists():
        shutil.copy(EVALUATION_SET, "mine.parquet")
    if command == "web":
        return start_the_page(rest, where)
    if command in DRY and "--dry-run" not in rest:
        rest.append("--dry-run")
    code, out, err = call(capsys, command, *rest)
    assert code == 0, f"{where}\n{out}\n{err}"
    for option in ("--picture", "--html", "--plot", "--out", "--csv"):
        if option in rest:
            path = Path(rest[rest.index(option) + 1])  # with several settings, kept-1.png and so on
            written = [*path.parent.glob(f"{path.stem}*{path.suffix}")]
            assert written, f"{where}: {option} wrote nothing"
            assert all(file.stat().st_size for file in written), where
    return None


def with_option(words, option, value):
    """The words with one option set, however often it was given."""
    kept, skip = [], False
    for word in words:
        if not skip and word != option and not word.startswith(f"{option}="):
            kept.append(word)
        skip = word == option and not skip
    return [*kept, option, value]


def start_the_page(words, where):
    """`globalcom2 web` prints its address; it is stopped then."""
    command = [sys.executable, "-m", "globalcom2", "web", *words]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as page:
        too_late = threading.Timer(180, page.kill)
        too_late.start()
        try:
            lines = []
            for line in page.stdout:
                lines.append(line)
                if "http://127.0.0.1:" in line:
                    return
            pytest.fail(f"{where}\n{''.join(lines)}")
        finally:
            too_late.cancel()
            page.terminate()


def check_pip(words, where):
    """What is installed exists: a folder with a package in it, or this package from an address, with extras that it has."""
    extras = set(re.findall(r"^(\w+) = \[\"", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    wanted = [word for word in words if not word.startswith("-")]
    assert wanted, where
    for word in wanted:
        name, _, named = word.partition("[")
        named, _, rest = named.partition("]")
        assert set(filter(None, named.split(","))) <= extras, where
        if name.startswith("globalcom2"):
            assert " @ git+" in name + rest, where
        elif name == "." or "/" in name:
            assert (ROOT / name / "pyproject.toml").is_file(), where
