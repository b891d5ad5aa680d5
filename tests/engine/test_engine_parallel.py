"""More than one process, and prompts in parts: the answers are those of one process that reads the prompt at once."""

import base64
import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from itertools import product
from pathlib import Path

import chat
import engines
import pytest

from families.internvl import VIEW
from globalcom2.mini import DEMO_QUESTION, FOLDER, demo_picture

HERE = Path(__file__).parent
CHAT = {"trust_remote_code": True}
RANKS = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
MINI_SIZES = ((224, 224), (336, 112), (100, 300), (60, 60))
QWEN_SIZES = ((168, 168), (60, 200), (240, 80))
TINY_SIZES = ((2 * VIEW, VIEW), (VIEW, 3 * VIEW), (2 * VIEW, 2 * VIEW), (VIEW, VIEW))


def requests(prompt: str, sizes, *ratios: float) -> list:
    """One per size and ratio, and one with two pictures; no picture is in two of them."""
    two = [prompt.replace("<image>", "<image><image>"), [[*sizes[0], 90], [*sizes[1], 91]], ratios[0]]
    pairs = enumerate(product(sizes, ratios))
    return [[prompt, [[*size, seed]], ratio] for seed, (size, ratio) in pairs] + [two]


@pytest.fixture(scope="module")
def told(folder, tmp_path_factory):
    """Per job, its answers."""
    scratch = tmp_path_factory.mktemp("parallel")
    made = {"chat": chat.tiny_chat(False), "odd": chat.tiny_chat(True, heads=3)}
    (scratch / "chat").mkdir()
    (scratch / "odd").mkdir()
    saved = {
        "mini": FOLDER,
        "internvl": folder("internvl"),
        "qwen3_vl": folder("qwen3_vl"),
        **{name: chat.save_chat(tiny, scratch / name) for name, tiny in made.items()},
    }
    asked = {
        "mini": requests("<s><user><image>what number is on the star?<assistant>", MINI_SIZES, 0.25, 0.1),
        "internvl": [
            [prompt.replace("<image>", "<IMG_CONTEXT>"), *rest]
            for prompt, *rest in requests("a <image> b?", TINY_SIZES, 0.4, 0.1)
        ],
        "qwen3_vl": [
            [prompt.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>"), *rest]
            for prompt, *rest in requests("a <image> b?", QWEN_SIZES, 0.4, 0.1)
        ],
        "chat": requests("a <image> b?", TINY_SIZES, 0.4, 0.1),
        "odd": requests("a <image> b?", TINY_SIZES[:2], 0.4),
    }
    images = {"limit_mm_per_prompt": {"image": 4, "video": 0}}
    own = {"mini": {}, "internvl": images, "qwen3_vl": images, "chat": CHAT, "odd": CHAT}
    kinds = {
        "mini ranks": RANKS,
        "internvl ranks": RANKS,
        "qwen3_vl views over ranks": {**RANKS, "mm_encoder_tp_mode": "data"},
        "chat ranks": RANKS,
        "chat views over ranks": {**RANKS, "mm_encoder_tp_mode": "data"},
        "odd ranks": RANKS,
        "mini parts": {"max_num_batched_tokens": 48, "max_num_seqs": 4},
        **{f"{name} alone": {} for name in saved},
    }
    jobs = {
        job: {
            "folder": str(saved[name := job.split()[0]]),
            "settings": {**own[name], **settings},
            "overrides": {"globalcom2_retention": 0.4, "globalcom2_floor": 0.05},
            "requests": asked[name],
        }
        for job, settings in kinds.items()
    }
    (scratch / "jobs.json").write_text(json.dumps(jobs))
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    run = subprocess.run(
        [sys.executable, str(HERE / "several.py"), str(scratch / "jobs.json"), str(scratch / "answers.json")],
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    return json.loads((scratch / "answers.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "job",
    [
        "mini ranks",
        "internvl ranks",
        "qwen3_vl views over ranks",
        "chat ranks",
        "chat views over ranks",
        "odd ranks",
        "mini parts",
    ],
)
def test_answers_do_not_hang_on_how_an_engine_is_split(told, job):
    """ "odd" has three heads: two ranks cannot share them, so that each has all."""
    alone = told[f"{job.split()[0]} alone"]
    assert len(told[job]) == len(alone) > 2
    for got, expected in zip(told[job], alone, strict=True):
        assert got["prompt"] == expected["prompt"]
        assert got["read"] == pytest.approx(expected["read"], abs=2e-3)
        assert got["tokens"] == expected["tokens"]
        for found, step in zip(got["best"], expected["best"], strict=True):
            assert [value for _, value in sorted(found, key=lambda pair: pair[1])] == pytest.approx(
                [value for _, value in sorted(step, key=lambda pair: pair[1])], abs=2e-3
            )


@contextlib.contextmanager
def serving(*flags: str):
    """`vllm serve` of the mini model; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    limits = ("--max-model-len", "2048", "--block-size", "32", "--dtype", "float32", "--enforce-eager")
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(FOLDER), "--served-model-name", "mini"]
    process = subprocess.Popen(
        [*command, *limits, "--host", "127.0.0.1", "--port", str(port), *flags],
        env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "HF_HUB_OFFLINE": "1"},
    )
    try:
        for _ in range(1200):
            assert process.poll() is None
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            time.sleep(0.5)
        else:
            pytest.fail("no server after ten minutes")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_both_engines_of_a_server_answer_as_a_single_one(mini):
    buffer = io.BytesIO()
    demo_picture().save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": DEMO_QUESTION}]
    body = {
        "model": "mini",
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": 8,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
        "return_token_ids": True,
    }
    (alone,) = engines.answers(mini, [engines.request(f"<s><user><image>{DEMO_QUESTION}<assistant>", [demo_picture()])])
    overrides = json.dumps({"globalcom2_retention": 0.1})
    with serving("--data-parallel-size", "2", "--hf-overrides", overrides) as address:
        for rank in ("0", "1"):
            headers = {"Content-Type": "application/json", "X-data-parallel-rank": rank}
            call = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), headers)
            got = json.load(urllib.request.urlopen(call, timeout=300))
            (choice,) = got["choices"]
            assert choice["token_ids"] == engines.ids(alone)
            assert got["prompt_token_ids"] == list(alone.prompt_token_ids)
            told = [step["logprob"] for step in choice["logprobs"]["content"]]
            best = zip(engines.ids(alone), engines.best(alone), strict=True)
            assert told == pytest.approx([step[token] for token, step in best], abs=2e-3)
        with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:
            served = re.findall(r'^vllm:prompt_tokens_total{engine="(\d)".*} (\S+)$', answer.read().decode(), re.M)
    assert {engine: float(tokens) for engine, tokens in served} == dict.fromkeys("01", len(alone.prompt_token_ids))
