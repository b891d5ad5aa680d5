"""Trains the native mini in one go: the tower alone, the decoder on the frozen tower, then both together.

    python -m native.train --work runs/native --out runs/native/out          in the folder training

Each stage ends on time whatever the machine, since the learning rate follows the clock. With --resume a stopped run goes
on, within a stage too. Weights go to --out in float16 at the end of each stage.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are forked

import torch
from safetensors.torch import load_file, save_file

from native.build import model as build_model
from native.build import tokenizer
from native.check import checked, closed, questions
from native.decoder import Readers
from native.feed import Feed
from native.learning import Loop, Parts, Stage
from native.pictures import prepare_photos
from native.steps import decoder_step, tower_step
from native.tower import Heads

STAGES = ("tower", "decoder", "together")
WARM = {"tower": 0.05, "decoder": 0.03, "together": 0.05}
CHECK_SECONDS = 25.0
SHOWN = 10.0  # seconds between two lines on the screen


def numbers(text: str) -> list[float]:
    found = [float(part) for part in text.split(",")]
    if len(found) != len(STAGES):
        raise argparse.ArgumentTypeError(f"must be {len(STAGES)} numbers with commas between, got {text}")
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where checkpoints are kept")
    parser.add_argument("--out", type=Path, required=True, help="where weights in float16 and logs go")
    parser.add_argument("--stages", default=",".join(STAGES), help="which of them, in order")
    parser.add_argument("--seconds", type=numbers, default=[210.0, 270.0, 90.0], help="of the three stages")
    parser.add_argument(
        "--rates", type=numbers, default=[1.5e-3, 1.2e-3, 5e-4], help="peak learning rates of the stages"
    )
    parser.add_argument("--tokens", type=int, default=12544, help="of a step of the tower")
    parser.add_argument("--pictures", type=int, default=96, help="of a step of the decoder, fewer where they are large")
    parser.add_argument("--again", type=int, default=2, help="how often a step may be seen again where drawing is slow")
    parser.add_argument("--questions", type=int, default=200, help="of each kind in the check after a stage")
    parser.add_argument("--workers", type=int, default=max(1, len(os.sched_getaffinity(0)) - 2))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--photos", type=Path, help="photographs that native.photos saved, instead of installed ones")
    parser.add_argument("--seed", default="native", help="of the pictures")
    parser.add_argument("--begin", type=Path, help="the --out of an earlier run, whose last weights to go on from")
    parser.add_argument("--resume", action="store_true", help="go on from --work")
    args = parser.parse_args()
    args.stages = args.stages.split(",")
    if not set(args.stages) <= set(STAGES):
        parser.error(f"--stages must be of {', '.join(STAGES)}, got {', '.join(args.stages)}")
    return args


def last_weights(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What a run wrote to --out at the end of its last stage, float32, by part."""
    last = next(file for stage in reversed(STAGES) if (file := out / f"{stage}.safetensors").exists())
    parts = {"model": load_file(last), "heads": {}, "readers": {}}
    if last.stem == "tower":
        parts["model"] = {f"model.visual.{name}": value for name, value in parts["model"].items()}
    for name, value in load_file(out / "readouts.safetensors").items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    return {part: {name: value.float() for name, value in weights.items()} for part, weights in parts.items()}


class Run:
    """Weights, logs and checkpoints of a run."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.begin, self.shown = args, time.perf_counter(), 0.0
        args.work.mkdir(parents=True, exist_ok=True)
        args.out.mkdir(parents=True, exist_ok=True)
        self.state = {"done": [], "runs": 0, "stage": None, "spent": 0.0}
        if args.resume:
            self.state = torch.load(args.work / "state.pt", map_location="cpu", weights_only=False)
        elif args.begin is not None:
            self.state |= {"runs": 100, **last_weights(args.begin)}
        self.state["runs"] += 1
        self.log = (args.out / "log.jsonl").open("a")

    def build(self) -> Parts:
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")
        torch.backends.cuda.enable_cudnn_sdp(False)  # it would plan anew for each of the many sizes
        self.parts = Parts(build_model(), Heads(), Readers())
        for name, part in zip(Parts._fields, self.parts, strict=True):
            if name in self.state:
                # Of a tower alone, the decoder stays as it was drawn.
                part.load_state_dict(part.state_dict() | self.state[name])
            part.to(self.args.device)
        return self.parts

    def save(self, stage: str | None, spent: float, optimizer: dict | None) -> None:
        parts = {name: part.state_dict() for name, part in zip(Parts._fields, self.parts, strict=True)}
        self.state |= {**parts, "stage": stage, "spent": spent, "optimizer": optimizer}
        torch.save(self.state, self.args.work / "state.tmp")
        (self.args.work / "state.tmp").replace(self.args.work / "state.pt")

    def write(self, **what) -> None:
        print(json.dumps({"at": round(time.perf_counter() - self.begin, 1), **what}), file=self.log, flush=True)

    def report(self, loop: Loop, took: float) -> None:
        feed, before = loop.feed, getattr(loop, "before", (0, 0, 0.0, 0))
        now = (loop.steps, loop.pictures, feed.waited, feed.seen_again)
        loop.before = now
        steps, pictures, waited, again = (a - b for a, b in zip(now, before, strict=True))
        speed = {"step": loop.steps, "pictures": loop.pictures, "per second": round(pictures / took)}
        speed |= {"waited": round(max(0.0, waited) / took, 3), "again": round(again / max(1, steps), 3)}
        if loop.device != "cpu":
            speed["GB"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        running = {name: round(value, 3) for name, value in loop.running.items()}
        self.write(stage=loop.stage.name, spent=round(loop.spent, 1), **speed, **running)
        if loop.spent - self.shown >= SHOWN or loop.spent < self.shown or loop.spent >= loop.stage.seconds:
            self.shown = loop.spent
            line = " ".join(f"{name} {value:g}" for name, value in {**speed, **running}.items())
            print(f"{loop.stage.name} {loop.spent:.0f}s {line}", flush=True)

    def export(self, stage: str) -> None:
        """The stage's weights, and the read-outs, in float16."""
        model = self.parts.tower if stage == "tower" else self.parts.model
        weights = {name: value.half().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(weights, self.args.out / f"{stage}.safetensors")
        outs = {f"heads.{name}": value for name, value in self.parts.heads.state_dict().items()}
        outs |= {f"readers.{name}": value for name, value in self.parts.readers.state_dict().items()}
        outs = {name: value.half().cpu().contiguous() for name, value in outs.items()}
        save_file(outs, self.args.out / "readouts.safetensors")

    def check(self, stage: str) -> None:
        begin = time.perf_counter()
        asked = questions(f"{self.args.seed}-check-{stage}", self.args.questions)
        drawn = time.perf_counter() - begin
        model = self.parts.model.eval()
        found = {"all tokens": checked(model, asked, self.args.device, CHECK_SECONDS)}
        some = random.Random(0).sample(asked, min(len(asked), 400))
        found["closed positions"] = checked(model, some, self.args.device, CHECK_SECONDS / 2, closed)
        model.train()
        found["seconds"] = [round(drawn, 1), round(time.perf_counter() - begin, 1)]
        self.write(check=stage, **found)
        (self.args.out / f"check-{stage}.json").write_text(json.dumps(found, indent=1))
        for name in ("all tokens", "closed positions"):
            print(f"check {stage}, {name}: {json.dumps(found[name])}", flush=True)


def main() -> None:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # workers end with the run
    run = Run(args)
    prepare_photos(args.photos)
    tokenizer()
    jobs = {"tower": partial(tower_step, tokens=args.tokens), "decoder": partial(decoder_step, pictures=args.pictures)}
    left = [name for name in args.stages if name not in run.state["done"]]
    feed = Feed(jobs, args.workers, f"{args.seed}-{run.state['runs']}", args.device, args.again)
    feed.choose("tower" if left and left[0] == "tower" else "decoder")
    parts = run.build()
    feed.start()
    print(f"ready after {time.perf_counter() - run.begin:.1f} s: {left} on {args.device}", flush=True)
    for name in left:
        seconds, rate = args.seconds[STAGES.index(name)], args.rates[STAGES.index(name)]
        loop = Loop(
            parts, Stage(name, seconds, rate, WARM[name]), feed, args.device, run.report, partial(run.save, name)
        )
        spent = 0.0
        if run.state["stage"] == name and run.state.get("optimizer"):
            loop.optimizer.load_state_dict(run.state["optimizer"])
            spent = run.state["spent"]
        loop.run(spent)
        run.state["done"].append(name)
        run.save(None, 0.0, None)
        run.export(name)
        if name != "tower":
            run.check(name)
    feed.close()


if __name__ == "__main__":
    main()
