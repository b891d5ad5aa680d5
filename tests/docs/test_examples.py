"""The packages in examples/, installed as their pages say, and their own tests."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from docpages import ROOT

EXAMPLES = {"selector": ("methods", "spread"), "family": ("models", "lanterna")}


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_installed_and_works(example, tmp_path):
    copy, site = tmp_path / example, tmp_path / "site"
    shutil.copytree(ROOT / "examples" / example, copy)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", site, copy], check=True)

    paths = [str(site), str(ROOT / "src")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "error:globalcom2", "-m", "globalcom2", EXAMPLES[example][0], "--json"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    ((_, rows),) = json.loads(done.stdout).items()
    assert EXAMPLES[example][1] in [next(iter(row.values())) for row in rows]

    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", copy, copy / "tests"]
    done = subprocess.run(tests, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_the_selector_of_the_example_on_odd_images(monkeypatch):
    """A crop that is all padding, an image without crops, a wrong option."""
    import torch

    monkeypatch.syspath_prepend(ROOT / "examples" / "selector")
    from globalcom2_spread import METHOD

    from globalcom2 import InputError, Views, select

    views = Views(
        torch.randn(2, 16), torch.tensor([[False] * 16, [True] * 16]), (1, 2), thumbnail_scores=torch.randn(16)
    )
    keep = select(views, 0.25, METHOD)
    assert int(keep.crops.sum() + keep.thumbnail.sum()) == 8
    assert not keep.crops[0].any()
    whole = select(Views(torch.zeros(0, 16), grid=(0, 0), thumbnail_scores=torch.randn(16)), 0.25, METHOD)
    assert int(whole.thumbnail.sum()) == 4
    with pytest.raises(InputError, match="block must be a positive integer"):
        select(views, 0.25, METHOD, block=0)
