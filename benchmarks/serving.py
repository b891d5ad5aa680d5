"""Throughput of a vLLM engine with all visual tokens and with a part of them, in one run.

    python benchmarks/serving.py [--model FOLDER] [--ratios 1 0.1] [--requests 64] [--rounds 5] [--out FILE.json]

Rounds of the ratios alternate, the first of each is discarded. Caches of prompts and of processed images are off, so that every
request pays for its tower and its prefill; answers have a fixed length. Run it in an environment that has vLLM.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from vllm import LLM, SamplingParams, __version__

from globalcom2.lab.dataset import Example, load_examples
from globalcom2.lab.machine import machine
from globalcom2.mini import EVALUATION_SET, FOLDER

AT_ONCE = 16


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(FOLDER))
    parser.add_argument("--prompt", default="<s><user><image>{question}<assistant>")
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.0, 0.1])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=8, help="length of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def engine(args: argparse.Namespace) -> LLM:
    """An engine that serves every ratio and caches nothing."""
    return LLM(
        args.model,
        max_model_len=2048,
        max_num_batched_tokens=2048,
        max_num_seqs=AT_ONCE,
        enforce_eager=True,
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
        limit_mm_per_prompt={"image": 1},
        hf_overrides={"globalcom2_retention": max(args.ratios), "globalcom2_floor": min(args.ratios)},
    )


def requests_at(ratio: float, prompt: str, examples: list[Example]) -> list[dict[str, Any]]:
    """One request per example: its first question, at that ratio."""
    return [
        {
            "prompt": prompt.format(question=example.questions[0].text),
            "multi_modal_data": {"image": example.image},
            "mm_processor_kwargs": {"globalcom2_retention": ratio},
        }
        for example in examples
    ]


def measure(args: argparse.Namespace) -> tuple[dict[float, list[float]], dict[float, float]]:
    """Seconds of every round but the first, and mean prompt tokens, by ratio."""
    served = engine(args)
    examples = load_examples(EVALUATION_SET, first=args.requests)
    sampling = SamplingParams(temperature=0, max_tokens=args.tokens, ignore_eos=True)
    seconds: dict[float, list[float]] = {ratio: [] for ratio in args.ratios}
    prompt_tokens: dict[float, float] = {}
    for number in range(1 + args.rounds):
        for ratio in args.ratios:
            requests = requests_at(ratio, args.prompt, examples)
            start = time.perf_counter()
            outputs = served.generate(requests, sampling, use_tqdm=False)
            if number:
                seconds[ratio].append(time.perf_counter() - start)
            prompt_tokens[ratio] = statistics.mean(len(output.prompt_token_ids) for output in outputs)
        print(f"round {number} of {args.rounds}", file=sys.stderr)
    return seconds, prompt_tokens


def row(ratio: float, requests: int, taken: list[float], slowest: list[float], tokens: float) -> dict[str, Any]:
    """Rates and speed-ups over the rounds, median and range."""
    rates = [requests / second for second in taken]
    gains = [full / second for full, second in zip(slowest, taken, strict=True)]
    return {
        "retention_ratio": ratio,
        "prompt_tokens": round(tokens, 1),
        "requests_per_second": round(statistics.median(rates), 2),
        "requests_per_second_range": [round(min(rates), 2), round(max(rates), 2)],
        "speedup": round(statistics.median(gains), 2),
        "speedup_range": [round(min(gains), 2), round(max(gains), 2)],
    }


def main() -> None:
    """Measure, print one line per ratio, and write the result into --out."""
    args = arguments()
    seconds, prompt_tokens = measure(args)
    slowest = seconds[max(args.ratios)]
    rows = [row(ratio, args.requests, taken, slowest, prompt_tokens[ratio]) for ratio, taken in seconds.items()]
    for made in rows:
        print("{retention_ratio:g}: {requests_per_second} requests/s, {speedup}x".format(**made))
    if args.out:
        result = {
            "command": shlex.join(["python", "benchmarks/serving.py", *sys.argv[1:]]),
            "vllm": __version__,
            **machine(torch.device("cpu")),
            "model": "mini" if args.model == str(FOLDER) else args.model,
            "at_once": AT_ONCE,
            "requests": args.requests,
            "answer_tokens": args.tokens,
            "rows": rows,
        }
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
