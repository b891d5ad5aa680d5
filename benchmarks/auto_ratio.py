"""Whether `retention_ratio="auto"` is worth its while: accuracy beside that of a fixed ratio with as many tokens.

    python training/mini/evaluation_set.py tuning runs/tuning.parquet
    python benchmarks/auto_ratio.py runs/tuning.parquet --first 200 --pictures 200 --out benchmarks/results/mini-auto.json

The signal was chosen on the tuning set's first 100 pictures, so pictures from 100 on tell more.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from globalcom2 import compress, load_mini
from globalcom2.hf.compression import Compression
from globalcom2.lab.answers import answer_questions
from globalcom2.lab.dataset import Example, load_examples
from globalcom2.lab.machine import machine

RESAMPLES = 10_000


def answered(model: Any, processor: Any, pictures: list[Example], block: Compression) -> dict[str, NDArray[np.float64]]:
    """Per picture: share of right answers, tokens before and after, and the ratio that it got."""
    rows = []
    for picture in track(pictures, block.settings.described):
        with block:
            asked = [question.text for question in picture.questions]
            (texts,) = answer_questions(model, processor, [picture.image], [asked], 16).texts
        right = [text.lower() == own.answer.lower() for text, own in zip(texts, picture.questions, strict=True)]
        entry = block.report[0]
        rows.append((np.mean(right), entry.tokens_before, entry.tokens_after, entry.retention_ratio))
    return dict(zip(("right", "before", "after", "ratio"), np.array(rows, dtype=np.float64).T, strict=True))


def main() -> None:
    """Print what both ways reach and their paired difference, and write it into --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--first", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = load_mini()
    pictures = load_examples(args.dataset, args.first + args.pictures)[args.first :]
    auto = answered(model, processor, pictures, compress(model, "auto"))
    ratio = float(auto["after"].sum() / auto["before"].sum())
    fixed = answered(model, processor, pictures, compress(model, ratio))
    difference = auto["right"] - fixed["right"]
    drawn = np.random.default_rng(0).integers(0, len(difference), (RESAMPLES, len(difference)))
    runs = [
        {"retention_ratio": asked, "accuracy": own["right"].mean(), "visual_tokens": own["after"].mean(),
         "ratios": [own["ratio"].min(), float(np.median(own["ratio"])), own["ratio"].max()]}
        for asked, own in (("auto", auto), (ratio, fixed))
    ]  # fmt: skip
    result = {
        "benchmark": "auto beside a fixed ratio with as many tokens, mini model, tuning set",
        "command": " ".join(["python benchmarks/auto_ratio.py", *sys.argv[1:]]),
        "method": compress(model).settings.method_text,
        "first": args.first,
        "pictures": len(pictures),
        "questions": sum(len(picture.questions) for picture in pictures),
        "runs": runs,
        "difference": float(difference.mean()),
        "difference_interval": np.percentile(difference[drawn].mean(1), [2.5, 97.5]).tolist(),
        **machine(torch.device("cpu")),
    }
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
