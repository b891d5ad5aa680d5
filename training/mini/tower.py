"""Step 1: the vision tower (CLIP architecture), from random weights, with dense supervision.

Read-outs of the second-last layer, which is the one that LLaVA-NeXT uses: every patch of a tag or a document's line is
asked for colour and shape or for the word, for a digit where one stands, whether it holds the centre, and where in the view
it is; [CLS] is asked which names, digits and words are in the view and how many things, so that its attention row means
something; how many is asked of the patches too, so that a few of them tell it.

    python tower.py OUT.pt --steps 2500        resumes from OUT.pt if it is there
"""

from __future__ import annotations

import argparse
import os
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPVisionConfig, CLIPVisionModel

from scenes import (
    COLORS,
    MOST_LINES,
    SHAPES,
    TRAINING_PHOTOS,
    VIEW,
    WORDS,
    Scene,
    background,
    draw_clutter,
    draw_document,
    draw_tags,
    outline,
    place_lines,
    place_tags,
    recompressed,
    scene,
)

PATCH = 14
SIDE = VIEW // PATCH
IGNORE = -100
PAIRS = len(COLORS) * len(SHAPES)
VIEW_LABELS = PAIRS + 20 + len(WORDS)  # colour and shape, tens, units, words
MOST_THINGS = 10
# Read-outs of every patch and their classes; the last class of color and word is background.
PATCH_HEADS = {
    "color": len(COLORS) + 1,
    "shape": len(SHAPES),
    "tens": 10,
    "units": 10,
    "word": len(WORDS) + 1,
    "centre": 2,
    "column": SIDE,
}
BACKGROUND = {"color": len(COLORS), "word": len(WORDS), "centre": 0}
PARTS = ("any", "tens", "units", "centre")  # of a tag or line
WEIGHTS = {"color": 1.0, "shape": 1.0, "tens": 1.5, "units": 1.5, "word": 1.0, "centre": 0.5, "column": 0.2}
MEASURED = 20  # every so many steps
MEAN = (0.481, 0.458, 0.408)
STD = (0.269, 0.261, 0.276)


def tower_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=8,
        image_size=VIEW,
        patch_size=PATCH,
        projection_dim=256,
        hidden_act="quick_gelu",
    )


class Windows(Dataset):
    """Views with labels: windows dense with tags or lines, thumbnails of whole scenes, and crops of whole scenes."""

    def __init__(self, seed: str, length: int, first: int = 0):
        self.seed, self.length, self.first = seed, length, first

    def __len__(self) -> int:
        return self.length - self.first

    def __getitem__(self, index: int):
        seed = f"{self.seed}-{index + self.first}"
        rng = random.Random(seed)
        kind = rng.random()
        if kind < 0.4:
            tags = place_tags(rng, VIEW, VIEW, rng.randint(1, 8), clustered=False, clear_of_cuts=False)
            if rng.random() < 0.3:  # tags cut by the view's border, as crops of a larger picture have them
                dx, dy = rng.uniform(-20, 20), rng.uniform(-20, 20)
                tags = [replace(t, x=t.x + dx, y=t.y + dy) for t in tags]
            image = background(rng, VIEW, VIEW, TRAINING_PHOTOS)
            draw_clutter(rng, image, tags)
            return labelled(Scene(recompressed(rng, draw_tags(image, tags)), tags=tags))
        if kind < 0.6:
            lines = place_lines(rng, VIEW, VIEW, rng.randint(3, MOST_LINES))
            return labelled(Scene(recompressed(rng, draw_document(rng, VIEW, VIEW, lines)), lines=lines))
        whole = scene(seed, documents=0.1)
        if kind < 0.87:
            return thumbnail(whole)
        return crop(whole, rng.randrange(whole.grid[0]), rng.randrange(whole.grid[1]))


class Labelled(NamedTuple):
    """A view with what each patch and the whole of it show."""

    pixels: torch.Tensor
    """uint8 (3, VIEW, VIEW)."""
    patches: torch.Tensor
    """int64 (len(PATCH_HEADS), SIDE * SIDE), IGNORE where nothing is asked."""
    view: torch.Tensor
    """float (VIEW_LABELS,)."""
    things: int
    """Number of tags and lines, at most MOST_THINGS."""
    owners: torch.Tensor
    """int64 (len(PARTS), SIDE * SIDE): which of the scene's tags or lines a patch shows, by part, -1 for none."""


def labelled(seen: Scene, scale: tuple[float, float] = (1.0, 1.0)) -> Labelled:
    """The labels of a view.

    Args:
        seen: A scene whose image is one view.
        scale: Size of the view over that of its tags' coordinates; below one nothing is legible.
    """
    labels = np.full((len(PATCH_HEADS), SIDE * SIDE), IGNORE, np.int64)
    by_head = dict(zip(PATCH_HEADS, labels, strict=True))
    by_head["color"][:], by_head["word"][:], by_head["centre"][:] = len(COLORS), len(WORDS), 0
    by_head["column"][:] = np.arange(SIDE * SIDE) % SIDE
    view, things = np.zeros(VIEW_LABELS, np.float32), 0
    owners = np.full((len(PARTS), SIDE * SIDE), -1, np.int64)
    (sx, sy), legible = scale, scale == (1.0, 1.0)
    best = np.zeros(SIDE * SIDE)  # a patch belongs to the tag that covers most of it
    for number, tag in enumerate(seen.tags):
        corners = [(x * sx, y * sy) for x, y in outline(tag)]
        if outside(corners):
            continue
        canvas = Image.new("L", (VIEW, VIEW))
        ImageDraw.Draw(canvas).polygon(corners, fill=1)
        share = patches(np.asarray(canvas, np.float32))
        if share.max() < 0.1:
            continue
        inside = (share > min(0.3, share.max() - 1e-6)) & (share > best)
        best = np.maximum(best, share)
        color, shape = list(COLORS).index(tag.color), SHAPES.index(tag.shape)
        by_head["color"][inside], by_head["shape"][inside] = color, shape
        view[color * len(SHAPES) + shape] = 1
        owners[0][inside] = number
        things += mark_centre(by_head["centre"], owners, number, tag.x * sx, tag.y * sy)
        boxes = tag.digit_boxes()
        if legible and within(boxes):
            mark_digits(by_head, owners, number, boxes, tag.number)
            mark_number(view, tag.number)
    for number, line in enumerate(seen.lines if legible else ()):
        boxes = line.boxes()
        if not within(boxes):
            continue
        share = np.maximum(*[coverage(box) for box in boxes])
        inside = (share > 0.15) & (share > best)
        best = np.maximum(best, share)
        by_head["word"][inside] = WORDS.index(line.word)
        owners[0][inside] = number
        mark_digits(by_head, owners, number, line.digit_boxes(), line.number)
        mark_number(view, line.number)
        view[PAIRS + 20 + WORDS.index(line.word)] = 1
        things += mark_centre(by_head["centre"], owners, number, line.right - 8, line.y)
    return Labelled(
        torch.from_numpy(np.asarray(seen.image).transpose(2, 0, 1).copy()),
        torch.from_numpy(labels),
        torch.from_numpy(view),
        min(things, MOST_THINGS),
        torch.from_numpy(owners),
    )


def thumbnail(whole: Scene) -> Labelled:
    """The whole picture as one view."""
    small = whole.image.resize((VIEW, VIEW), Image.Resampling.BICUBIC)
    return labelled(replace(whole, image=small), scale=(VIEW / whole.image.width, VIEW / whole.image.height))


def crop(whole: Scene, row: int, col: int) -> Labelled:
    """One tile of the picture."""
    left, top = VIEW * col, VIEW * row
    tags = [replace(t, x=t.x - left, y=t.y - top) for t in whole.tags]
    lines = [replace(n, left=n.left - left, right=n.right - left, y=n.y - top) for n in whole.lines]
    return labelled(Scene(whole.image.crop((left, top, left + VIEW, top + VIEW)), tags, lines))


def outside(corners: list[tuple[float, float]]) -> bool:
    across, down = zip(*corners, strict=True)
    return max(across) < -1 or max(down) < -1 or min(across) > VIEW or min(down) > VIEW


def within(boxes) -> bool:
    return all(min(box[:2]) >= 0 and max(box[2:]) <= VIEW for box in boxes)


def mark_centre(centres: np.ndarray, owners: np.ndarray, owner: int, x: float, y: float) -> int:
    if not (0 <= x < VIEW and 0 <= y < VIEW):
        return 0
    patch = int(y // PATCH) * SIDE + int(x // PATCH)
    centres[patch], owners[PARTS.index("centre"), patch] = 1, owner
    return 1


def mark_digits(labels: dict[str, np.ndarray], owners: np.ndarray, owner: int, boxes, number: int) -> None:
    """Each digit where it stands: patches that hold at least 30 % of its box."""
    for head, digit, box in zip(("tens", "units"), divmod(number, 10), boxes, strict=True):
        area = (box[2] - box[0]) * (box[3] - box[1]) / PATCH**2
        inside = coverage(box) > 0.3 * area
        labels[head][inside], owners[PARTS.index(head), inside] = digit, owner


def mark_number(view: np.ndarray, number: int) -> None:
    view[PAIRS + number // 10] = view[PAIRS + 10 + number % 10] = 1


def patches(mask: np.ndarray) -> np.ndarray:
    return mask.reshape(SIDE, PATCH, SIDE, PATCH).mean((1, 3)).ravel()


def coverage(box: tuple[float, float, float, float]) -> np.ndarray:
    """How much of each patch a box covers, (SIDE * SIDE,)."""
    edges = np.arange(SIDE) * PATCH
    x = np.clip(np.minimum(box[2], edges + PATCH) - np.maximum(box[0], edges), 0, None)
    y = np.clip(np.minimum(box[3], edges + PATCH) - np.maximum(box[1], edges), 0, None)
    return np.outer(y, x).ravel() / PATCH**2


class Heads(nn.ModuleDict):
    """Linear read-outs of one layer: patch heads, [CLS] heads for what is in the view, and of both how many things."""

    def __init__(self, width: int):
        super().__init__({name: nn.Linear(width, classes) for name, classes in PATCH_HEADS.items()})
        self["view"] = nn.Linear(width, VIEW_LABELS)
        self["things"] = nn.Linear(width, MOST_THINGS + 1)
        self["things around"] = nn.Linear(width, MOST_THINGS + 1)
        self["pooled"] = nn.Linear(width, VIEW_LABELS)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def hidden_state(tower: CLIPVisionModel, pixels: torch.Tensor) -> torch.Tensor:
    """Output of the second-last layer, (views, 1 + SIDE * SIDE, width): what LLaVA-NeXT reads."""
    hidden = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
    return hidden


def last_state(tower: CLIPVisionModel, hidden: torch.Tensor) -> torch.Tensor:
    """[CLS] after the last layer, (views, width), which alone learns from it: LLaVA-NeXT does not read that layer, but the
    paper's code scores tokens by its attention."""
    return tower.post_layernorm(tower.encoder.layers[-1](hidden.detach(), attention_mask=None)[:, 0])


def read_out(heads: Heads, hidden: torch.Tensor, pooled: torch.Tensor | None, views: Labelled, measure: bool = True):
    """Weighted losses of all read-outs, and how often the most likely class is right, where that is to be measured.

    Args:
        heads: The read-outs.
        hidden: What `hidden_state` returned, in float32.
        pooled: What `last_state` returned, or None.
        views: Labels of the same views.
        measure: Whether to wait for the device for the shares.
    """
    losses, now = {}, {}
    for row, name in enumerate(PATCH_HEADS):
        logits, target = heads[name](hidden[:, 1:]).flatten(0, 1), views.patches[:, row].flatten()
        weight = torch.ones(logits.shape[1], device=logits.device)
        if name in BACKGROUND:
            weight[BACKGROUND[name]] = 0.1
        losses[name] = WEIGHTS[name] * F.cross_entropy(logits, target, weight, ignore_index=IGNORE)
        if measure:
            known = target != IGNORE if name not in BACKGROUND else target != BACKGROUND[name]
            now[name] = (logits.argmax(-1)[known] == target[known]).float().mean().item()
    counted = heads["things"](hidden[:, 0])
    losses["view"] = 3 * F.binary_cross_entropy_with_logits(heads["view"](hidden[:, 0]), views.view)
    losses["things"] = 0.5 * F.cross_entropy(counted, views.things)
    around, wanted = heads["things around"](hidden[:, 1:]), views.things[:, None].expand(-1, SIDE * SIDE)
    losses["things around"] = F.cross_entropy(around.mT, wanted)
    if pooled is not None:
        losses["pooled"] = F.binary_cross_entropy_with_logits(heads["pooled"](pooled.float()), views.view)
    if measure:
        now["view loss"] = losses["view"].item() / 3
        now["things"] = (counted.argmax(-1) == views.things).float().mean().item()
        now["around"] = (around.argmax(-1) == wanted).float().mean().item()
    return losses, now


def attention_of(device: str) -> str:
    """So few tokens train faster without a fused kernel on a CPU."""
    return "eager" if device == "cpu" else "sdpa"


def machine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=2, help="of the training itself, on a CPU")
    parser.add_argument(
        "--workers", type=int, default=max(1, len(os.sched_getaffinity(0)) - 1), help="processes that draw"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def prepare(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.multiprocessing.set_sharing_strategy("file_system")  # many tensors a step: a socket for each takes far longer


def made_with(args: argparse.Namespace) -> dict[str, str]:
    """What a run must go on with after a stop."""
    elsewhere = ("out", "device", "threads", "workers")
    return {name: str(value) for name, value in vars(args).items() if name not in elsewhere}


def resumed(args: argparse.Namespace) -> dict:
    """The state that a stopped run left."""
    saved = torch.load(args.out, map_location=args.device)
    if saved["made_with"] != made_with(args):
        raise SystemExit(
            f"{args.out} was made with {saved['made_with']}: give the same to go on with it, or remove it."
        )
    return saved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=128, help="views per step")
    parser.add_argument("--rate", type=float, default=1e-3)
    machine_arguments(parser)
    parser.add_argument("--seed", default="tower", help="of the pictures")
    args = parser.parse_args()
    prepare(args)
    torch.manual_seed(0)
    tower = CLIPVisionModel(tower_config()).to(args.device)
    tower.set_attn_implementation(attention_of(args.device))
    heads = Heads(tower.config.hidden_size).to(args.device)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.rate, args.steps, pct_start=0.06)
    step = 0
    if args.out.exists():
        saved = resumed(args)
        tower.load_state_dict(saved["tower"])
        heads.load_state_dict(saved["heads"])
        if saved["step"] < args.steps:
            optimizer.load_state_dict(saved["optimizer"])
            schedule.load_state_dict(saved["schedule"])
        step = saved["step"]
    data = DataLoader(
        Windows(args.seed, args.steps * args.batch, step * args.batch),
        batch_size=args.batch,
        num_workers=args.workers,
        prefetch_factor=4,
    )
    start, running = time.time(), {}
    for views in data:
        views = Labelled(*(part.to(args.device) for part in views))
        with torch.autocast(args.device, torch.bfloat16):
            hidden = hidden_state(tower, normalise(views.pixels))
            pooled = last_state(tower, hidden) if step % 2 == 0 else None
        losses, now = read_out(heads, hidden.float(), pooled, views, step % MEASURED == 0)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        step += 1
        running |= {k: 0.9 * running.get(k, v) + 0.1 * v for k, v in now.items() if v == v}
        if step % 50 == 0:
            print(
                f"{step} {time.time() - start:.0f}s " + " ".join(f"{k} {v:.3f}" for k, v in running.items()), flush=True
            )
        if step % 500 == 0 or step == args.steps:
            state = {
                "tower": tower.state_dict(),
                "heads": heads.state_dict(),
                "step": step,
                "made_with": made_with(args),
            }
            state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            torch.save(state, args.out.with_suffix(".tmp"))
            args.out.with_suffix(".tmp").replace(args.out)


if __name__ == "__main__":
    main()
