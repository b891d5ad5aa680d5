"""`examples/ray_batch.py`: answers, ratios by row, rows that fail, a stop in the middle, and a worker that dies."""

import argparse
import importlib.util
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` makes an environment that has it")
pytest.importorskip("ray.data", reason="ray is not installed: pip install '.[ray]'")

import psutil
from pyarrow import parquet

from globalcom2 import compress, load_mini
from globalcom2.lab.dataset import load_examples
from globalcom2.mini import EVALUATION_SET

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_batch.py"
ROWS, BATCH, TOKENS, DEFAULT = 96, 4, 8, 0.1
RATIOS = (None, 1.0, 0.25, 0.05)
NO_PICTURE, NO_RATIO = 5, 10
LIMIT = 1800  # seconds, for each of the waits


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A parquet file with ratios, one picture that is none and one ratio that is none."""
    table = parquet.read_table(EVALUATION_SET, columns=["picture", "image", "question"]).slice(0, ROWS)
    rows = table.to_pylist()
    for number, row in enumerate(rows):
        row["retention"] = RATIOS[number % len(RATIOS)]
    rows[NO_PICTURE]["image"] = {"bytes": b"no picture", "path": None}
    rows[NO_RATIO]["retention"] = 25.0
    path = tmp_path_factory.mktemp("questions") / "questions.parquet"
    parquet.write_table(table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def expected():
    """(answer, tokens of the prompt) by (picture, question), from transformers."""
    model, processor = load_mini()
    pictures = load_examples(EVALUATION_SET, first=ROWS // 8)
    asked = [(picture, question.text) for picture in pictures for question in picture.questions]
    told = {}
    for number, (picture, question) in enumerate(asked):
        ratio = RATIOS[number % len(RATIOS)] or DEFAULT
        prompt = f"<s><user><image>{question}<assistant>"
        inputs = processor(text=prompt, images=picture.image, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        with torch.no_grad(), compress(model, ratio) as compression:
            out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        if ratio < 1:
            placeholders = int((inputs["input_ids"] == model.config.image_token_id).sum())
            length += compression.report.tokens_after - placeholders
        new = out[0, inputs["input_ids"].shape[1] :]
        told[picture.number, question] = (processor.decode(new, skip_special_tokens=True).strip(), length)
    return told


class Job:
    """The example in a process of its own. `family` is what it started, which a killed parent leaves behind."""

    def __init__(self, questions: Path, out: Path):
        flags = ["--retention", str(DEFAULT), "--tokens", str(TOKENS), "--batch", str(BATCH), "--cpu"]
        slow = json.dumps({"max_num_seqs": 1})  # parts come one after the other
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        }
        self.done = out / "done"
        self.log = out.with_name(f"{out.name}-{time.monotonic_ns()}.log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(EXAMPLE), str(questions), "mini", str(out), *flags, "--engine", slow],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.family: dict[int, psutil.Process] = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.kill()

    def look(self) -> None:
        with_children = psutil.Process(self.process.pid)
        self.family |= {child.pid: child for child in [with_children, *with_children.children(recursive=True)]}

    def kill(self, named: str = "") -> int:
        """Kill what has a name; everything without one. Returns how many."""
        found = 0
        for process in self.family.values():
            try:
                if named in " ".join(process.cmdline()):
                    process.kill()  # psutil checks that it is no other process with that id
                    found += 1
            except psutil.NoSuchProcess:
                continue
        return found

    def parts(self) -> int:
        return sum(".pending" not in path.name for path in self.done.glob("*.parquet"))

    def wait(self, until) -> None:
        """Wait until something is so, or the process is gone."""
        deadline = time.monotonic() + LIMIT
        while self.process.poll() is None and not until():
            assert time.monotonic() < deadline, self.log.read_text()[-5000:]
            self.look()
            time.sleep(0.1)


@pytest.mark.slow
def test_every_row_once_through_a_stop_and_a_dead_worker(questions, expected, tmp_path):
    out = tmp_path / "out"
    with Job(questions, out) as job:
        job.wait(lambda: job.parts() >= 2)
        assert job.process.poll() is None, job.log.read_text()[-5000:]
        job.kill()
        job.process.wait()
    before = job.parts()
    assert 2 <= before < ROWS // BATCH
    first = {path.name: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}

    with Job(questions, out) as job:
        job.wait(lambda: job.parts() >= before + 2)
        assert job.kill("MapWorker(MapBatches(vLLMEngineStageUDF"), job.log.read_text()[-5000:]
        job.wait(lambda: False)
        assert job.process.wait() == 0, job.log.read_text()[-5000:]
    assert f"{ROWS} rows in {out / 'rows'}, 2 of them with an error" in job.log.read_text()

    committed = {path.name.removesuffix(".parquet") for path in (out / "done").iterdir()}
    kept = [name for name in first if any(name.startswith(part) for part in committed)]
    assert len(kept) >= before
    assert all((out / "rows" / name).stat().st_mtime_ns == first[name] for name in kept)  # not written again
    rows = parquet.read_table(out / "rows").to_pylist()
    by_key = {(row["picture"], row["question"]): row for row in rows}
    assert len(rows) == len(by_key) == ROWS
    assert set(by_key) == set(expected)
    failed = [list(expected)[number] for number in (NO_PICTURE, NO_RATIO)]
    assert "UnidentifiedImageError" in by_key[failed[0]]["error"]
    assert "retention_ratio must be in" in by_key[failed[1]]["error"]
    for number, (key, (answer, length)) in enumerate(expected.items()):
        if key not in failed:
            row = by_key[key]
            assert not row["error"]
            assert row["retention"] == (RATIOS[number % len(RATIOS)] or DEFAULT)
            assert row["prompt_tokens"] == length
            assert row["answer"] == answer


def test_a_folder_holds_one_job(questions, tmp_path):
    spec = importlib.util.spec_from_file_location("ray_batch", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    job = {"questions": questions, "model": "mini", "out": tmp_path / "out", "tokens": 8, "engine": {}}
    for _ in range(2):
        example.check_same_job(argparse.Namespace(**job, retention=0.1))
    with pytest.raises(SystemExit, match="must belong to the same job"):
        example.check_same_job(argparse.Namespace(**job, retention=0.2))
