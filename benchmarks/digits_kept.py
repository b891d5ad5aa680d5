"""Why a selector reads well or badly: how often the two digits that are asked for are among the tokens that it keeps.

    python benchmarks/digits_kept.py --pictures 300 --out benchmarks/results/mini-digits-kept.json

The language model is not run, so the result tells what selection loses apart from what the model cannot read. Images and
questions are those of the tuning set, drawn again, because only their scenes know which patch shows which digit. Newlines
count in the budget as they do by default.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "training" / "mini"))

from evaluation_set import questions_about
from globalcom2 import Views, load_mini, select
from globalcom2.core.methods import Method, register_method
from globalcom2.core.selection import Keep
from globalcom2.hf.compression import Compression, compress
from globalcom2.hf.unknown_grid import choose_tokens
from globalcom2.lab.intervals import Bootstrap, interval
from globalcom2.lab.machine import machine
from globalcom2.selectors import Ranking
from scenes import TUNING_PHOTOS, Scene, scene
from tower import PARTS, crop

RATIOS = (0.25, 0.1, 0.05, 0.03)
COUNTED = {"newlines": "counted"}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "uniform": ("uniform", COUNTED),
    "uniform, layer=-1": ("uniform", {"layer": -1, **COUNTED}),
    "globalcom2 with the paper's choices: layer=-1, softmax, alpha 0.5": (
        "globalcom2",
        {"layer": -1, "allocation": "softmax", "alpha": 0.5, **COUNTED},
    ),
    "layer=-1, attention": ("globalcom2", {"layer": -1, "allocation": "attention", **COUNTED}),
    "softmax, alpha 0.5": ("globalcom2", {"allocation": "softmax", "alpha": 0.5, **COUNTED}),
    "softmax": ("globalcom2", {"allocation": "softmax", **COUNTED}),
    "softmax, alpha 0": ("globalcom2", {"allocation": "softmax", "alpha": 0.0, **COUNTED}),
    "attention": ("globalcom2", {"allocation": "attention", **COUNTED}),
    "told: budgets by the number of tags or lines in each crop": ("told", COUNTED),
    "joint": ("globalcom2", COUNTED),
    "joint, thumbnail_weight=0.5": ("globalcom2", {"thumbnail_weight": 0.5, **COUNTED}),
    "uniform, newlines=from_3": ("uniform", {}),
    "attention, newlines=from_3": ("globalcom2", {"allocation": "attention"}),
    "globalcom2 by default: joint, newlines=from_3": ("globalcom2", {}),
    "uniform, newlines=none": ("uniform", {"newlines": "none"}),
    "joint, newlines=none": ("globalcom2", {"newlines": "none"}),
}
"""`layer` is an option of `compress`, all others of `select`. Newlines count unless a name says otherwise."""


class Seen(NamedTuple):
    """What a selector saw of an image, and where the digits are."""

    views: dict[int | None, Views]
    """By layer; None is the default."""
    owners: NDArray[np.int64]
    """(crops, len(PARTS), tokens): number of the tag or line that a token shows, by part."""
    asked: list[int]
    """Tags or lines whose number is asked for."""


def watching(model: Any, layer: int | None) -> tuple[Compression, list[Views]]:
    """A compression at that layer, and a list to which each call appends the views that it saw."""
    settings, seen = compress(model, 0.5, layer=layer).settings, []

    def choose(views: Views, known_grid: bool) -> Keep:
        seen.append(views)
        return choose_tokens(settings, views, known_grid)

    return Compression(model, settings, choose), seen


def told(views: Views, retention_ratio: float, *, things: Tensor) -> Ranking:
    """Give each crop its share of the tags or lines, which no selector can know. Local scores rank."""
    return Ranking(views.thumbnail_scores, views.scores, (things + 0.3)[None])


def asked_about(shown: Scene, questions: list[tuple[str, str, str]]) -> list[int]:
    """Numbers of the tags or lines that `read` and `document` questions name."""
    names = [line.word for line in shown.lines] or [tag.name for tag in shown.tags]
    texts = [text for kind, text, _ in questions if kind in ("read", "document")]
    return [next(number for number, name in enumerate(names) if f"the {name}?" in text) for text in texts]


@torch.inference_mode()
def seen_images(count: int) -> list[Seen]:
    """Run the vision tower on the tuning set's first images."""
    model, processor = load_mini()
    watched = {layer: watching(model, layer) for layer in (None, -1)}
    found: list[Seen] = []
    numbers = iter(range(sys.maxsize))
    for _ in track(range(count), "Looking"):
        questions = None
        while questions is None:
            number = next(numbers)
            shown = scene(f"tuning-{number}", photos=TUNING_PHOTOS)
            questions = questions_about(random.Random(f"tuning-questions-{number}"), shown)
        inputs = processor(text="<s><user><image>read<assistant>", images=shown.image, return_tensors="pt")
        for compression, _ in watched.values():
            with compression:
                model(**inputs)
        crops = [crop(shown, row, col).owners.numpy() for row in range(shown.grid[0]) for col in range(shown.grid[1])]
        views = {layer: seen[-1] for layer, (_, seen) in watched.items()}
        found.append(Seen(views, np.stack(crops), asked_about(shown, questions)))
    return found


def covered(image: Seen, ratio: float, method: str, options: dict[str, Any]) -> list[bool]:
    """For every number that is asked for, whether a token of its tens and one of its units stay."""
    tens, units = (image.owners[:, PARTS.index(part)] for part in ("tens", "units"))
    if method == "told":
        options = {
            **options,
            "things": torch.tensor([len(set(own[own >= 0].tolist())) for own in tens], dtype=torch.float64),
        }
    of_select = {name: value for name, value in options.items() if name != "layer"}
    kept = select(image.views[options.get("layer")], ratio, method, **of_select).crops[0].numpy()
    return [bool(((tens == thing) & kept).any() and ((units == thing) & kept).any()) for thing in image.asked]


def main() -> None:
    """Print the shares, and write them into --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    register_method(Method("told", f"{__name__}:told", "What no selector can know", "this file"))
    shown = seen_images(args.pictures)
    owner = np.repeat(np.arange(len(shown)), [len(image.asked) for image in shown])
    bootstrap, rows = Bootstrap(owner), []
    for ratio in RATIOS:
        for name, (method, options) in SETTINGS.items():
            right = np.array([hit for image in shown for hit in covered(image, ratio, method, options)])
            found = {"setting": name, "retention_ratio": ratio, "covered": float(right.mean())}
            rows.append({**found, "interval": interval(bootstrap.accuracies(right))})
            print(f"{ratio:5g} {right.mean():6.1%}  {name}")
    if args.out:
        command = " ".join(["python benchmarks/digits_kept.py", *sys.argv[1:]])
        made = {"benchmark": "digits asked for that stay, mini model, tuning set", "command": command}
        made |= machine(torch.device("cpu"))
        args.out.write_text(
            json.dumps({**made, "pictures": len(shown), "numbers": len(owner), "runs": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
