"""Step 4: how well the exported model answers about pictures it was not trained on, with all tokens and with fewer.

Held-out photographs and seeds; prints a table, then one JSON line.

    python evaluate.py --pictures 200 --tags 3 --ratios 1 0.25 0.1 --out ../../benchmarks/results/mini-held-out.json
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
import transformers
from rich.progress import track

from globalcom2 import compress, list_methods, load_mini
from globalcom2.comparison import chat_prompt
from scenes import HELD_OUT_PHOTOS, KINDS, question, scene

BATCH = 16


def questions(pictures: int, most: int):
    """(image, kind, question, answer), one of each kind per picture."""
    for number in range(pictures):
        image, tags = scene(f"held-out-{number}", tags=(1, most), photos=HELD_OUT_PHOTOS)
        rng = random.Random(f"held-out-questions-{number}")
        for kind in KINDS:
            asked = question(rng, tags, kind)
            if asked[0] == kind:  # no shape is unique in some pictures
                yield image, *asked


def score(model, processor, asked, method: str, ratio: float) -> dict:
    right, tokens, start = defaultdict(list), [], time.perf_counter()
    # Pictures of one size together: less padding.
    order = sorted(range(len(asked)), key=lambda i: asked[i][0].size)
    for first in track(range(0, len(order), BATCH), description=f"{method} {ratio:g}"):
        part = [asked[i] for i in order[first : first + BATCH]]
        prompts = [chat_prompt(processor, text) for _, _, text, _ in part]
        inputs = processor(text=prompts, images=[image for image, *_ in part], return_tensors="pt", padding=True)
        with compress(model, ratio, method) as compression:
            out = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        answers = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for (_, kind, _, expected), answer in zip(part, answers, strict=True):
            right[kind].append(answer.strip() == expected)
        kept = compression.report.tokens_after
        tokens.append(kept or int((inputs["input_ids"] == model.config.image_token_id).sum()))
    flat = [hit for hits in right.values() for hit in hits]
    return {
        "method": method,
        "retention_ratio": ratio,
        "questions": len(flat),
        "accuracy": sum(flat) / len(flat),
        "visual_tokens": sum(tokens) / len(flat),
        "kinds": {kind: sum(hits) / len(hits) for kind, hits in right.items()},
        "seconds": time.perf_counter() - start,
    }


def markdown_table(result: dict) -> str:
    """The table of README and model card."""
    lines = [
        "| method | ratio | visual tokens | " + " | ".join(KINDS) + " | all |",
        "|---|---|---|" + "---|" * (len(KINDS) + 1),
    ]
    for run in result["runs"]:
        cells = [f"{run['kinds'][kind]:.1%}" for kind in KINDS] + [f"{run['accuracy']:.1%}"]
        lines.append(
            f"| {run['method']} | {run['retention_ratio']:g} | {run['visual_tokens']:.0f} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--tags", type=int, default=3, help="most tags in a picture")
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.0, 0.25, 0.1])
    parser.add_argument("--methods", nargs="+", default=list_methods())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model, processor = load_mini()
    asked = list(questions(args.pictures, args.tags))
    runs = []
    for ratio in args.ratios:
        for method in args.methods if ratio < 1 else args.methods[:1]:  # at 1 they are all the unpatched model
            run = score(model, processor, asked, method, ratio)
            run["method"] = method if ratio < 1 else "all tokens"
            runs.append(run)
            kinds = "  ".join(f"{kind} {run['kinds'][kind]:.3f}" for kind in KINDS)
            print(f"{run['method']:12} {ratio:<5g} {run['visual_tokens']:6.1f} tokens  {run['accuracy']:.3f}  {kinds}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "benchmark": "mini model on held-out pictures",
        "command": "python training/mini/evaluate.py " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit,
        "hardware": f"{torch.get_num_threads()} CPU threads, {platform.machine()}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "runs": runs,
    }
    print(markdown_table(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
