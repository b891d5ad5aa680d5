"""Step 1: the vision tower (CLIP architecture), from random weights, with dense supervision.

The patches of the second-last layer (the one that LLaVA-NeXT reads) are asked for colour, shape, tens and units of the
tag they show; [CLS] is asked which colours, shapes and digits are in the view, so that its attention row means something.

    python tower.py OUT.pt --steps 9000        resumes from OUT.pt if it is there
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPVisionConfig, CLIPVisionModel

from scenes import COLORS, SHAPES, TRAINING_PHOTOS, VIEW, Tag, background, draw, outline, place_tags, scene

PATCH = 14
SIDE = VIEW // PATCH
IGNORE = -100
MEAN = (0.481, 0.458, 0.408)
STD = (0.269, 0.261, 0.276)


def tower_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=6,
        image_size=VIEW,
        patch_size=PATCH,
        projection_dim=192,
        hidden_act="quick_gelu",
    )


class Windows(Dataset):
    """Views with patch labels: windows dense with tags, thumbnails of whole scenes, and crops of whole scenes."""

    def __init__(self, seed: str, length: int, first: int = 0):
        self.seed, self.length, self.first = seed, length, first

    def __len__(self) -> int:
        return self.length - self.first

    def __getitem__(self, index: int):
        seed = f"{self.seed}-{index + self.first}"
        rng = random.Random(seed)
        kind = rng.random()
        if kind < 0.72:
            tags = place_tags(rng, VIEW, VIEW, rng.randint(1, 10), clustered=False, clear_of_cuts=False)
            if rng.random() < 0.3:  # tags cut by the view's border, as crops of a larger picture have them
                dx, dy = rng.uniform(-20, 20), rng.uniform(-20, 20)
                tags = [replace(t, x=t.x + dx, y=t.y + dy) for t in tags]
            return labelled(draw(background(rng, VIEW, VIEW, TRAINING_PHOTOS), tags), tags, legible=True)
        image, tags = scene(seed, tags=(1, 7))
        if kind < 0.86:
            scale_x, scale_y = VIEW / image.width, VIEW / image.height
            return labelled(
                image.resize((VIEW, VIEW), Image.Resampling.BICUBIC), tags, legible=False, scale=(scale_x, scale_y)
            )
        left = VIEW * rng.randrange(image.width // VIEW)
        top = VIEW * rng.randrange(image.height // VIEW)
        moved = [replace(t, x=t.x - left, y=t.y - top) for t in tags]
        return labelled(image.crop((left, top, left + VIEW, top + VIEW)), moved, legible=True)


def labelled(image: Image.Image, tags: list[Tag], *, legible: bool, scale: tuple[float, float] = (1.0, 1.0)):
    """(pixels uint8 (3, VIEW, VIEW), patch labels (4, SIDE * SIDE), view labels (22,))."""
    labels = np.full((4, SIDE * SIDE), IGNORE, np.int64)
    labels[0] = len(COLORS)  # background is a class of its own
    view = np.zeros(len(COLORS) + len(SHAPES) + 10, np.float32)
    sx, sy = scale
    for tag in tags:
        canvas = Image.new("L", (VIEW, VIEW))
        ImageDraw.Draw(canvas).polygon([(x * sx, y * sy) for x, y in outline(tag)], fill=1)
        share = patches(np.asarray(canvas, np.float32))
        if share.max() < 0.2:
            continue
        inside = share > min(0.35, share.max() - 1e-6)
        color, shape = list(COLORS).index(tag.color), SHAPES.index(tag.shape)
        labels[0, inside], labels[1, inside] = color, shape
        view[color] = view[len(COLORS) + shape] = 1
        if not legible:
            continue
        for row, digit, box in zip((2, 3), divmod(tag.number, 10), tag.digit_boxes(), strict=True):
            if min(box[:2]) < 0 or max(box[2:]) > VIEW:
                continue
            part = box_share(box)
            labels[row, part > 0.3] = digit
            view[len(COLORS) + len(SHAPES) + digit] = 1
    return (
        torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()),
        torch.from_numpy(labels),
        torch.from_numpy(view),
    )


def patches(mask: np.ndarray) -> np.ndarray:
    return mask.reshape(SIDE, PATCH, SIDE, PATCH).mean((1, 3)).ravel()


def box_share(box: tuple[float, float, float, float]) -> np.ndarray:
    """How much of a box falls into each patch, (SIDE * SIDE,) summing to one."""
    edges = np.arange(SIDE) * PATCH
    x = np.clip(np.minimum(box[2], edges + PATCH) - np.maximum(box[0], edges), 0, None)
    y = np.clip(np.minimum(box[3], edges + PATCH) - np.maximum(box[1], edges), 0, None)
    return (np.outer(y, x) / ((box[2] - box[0]) * (box[3] - box[1]))).ravel()


class Heads(nn.ModuleDict):
    def __init__(self, width: int):
        super().__init__(
            {
                "color": nn.Linear(width, len(COLORS) + 1),
                "shape": nn.Linear(width, len(SHAPES)),
                "tens": nn.Linear(width, 10),
                "units": nn.Linear(width, 10),
                "view": nn.Linear(width, len(COLORS) + len(SHAPES) + 10),
            }
        )


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    shape = (1, 3, 1, 1)
    return (pixels.float() / 255 - torch.tensor(MEAN).view(shape)) / torch.tensor(STD).view(shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tower = CLIPVisionModel(tower_config()).to(args.device)
    heads = Heads(tower.config.hidden_size).to(args.device)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.rate, args.steps, pct_start=0.06)
    step = 0
    if args.out.exists():
        saved = torch.load(args.out, map_location=args.device)
        tower.load_state_dict(saved["tower"])
        heads.load_state_dict(saved["heads"])
        if saved["step"] < args.steps:
            optimizer.load_state_dict(saved["optimizer"])
            schedule.load_state_dict(saved["schedule"])
        step = saved["step"]
    data = DataLoader(
        Windows("tower", args.steps * args.batch, step * args.batch),
        batch_size=args.batch,
        num_workers=1,
        prefetch_factor=8,
    )
    start, running = time.time(), {}
    for pixels, labels, view in data:
        labels = labels.to(args.device)
        out = tower(normalise(pixels).to(args.device), output_hidden_states=True)
        features = out.hidden_states[-2][:, 1:]
        losses, right = {}, {}
        for row, name in enumerate(("color", "shape", "tens", "units")):
            logits, target = heads[name](features).flatten(0, 1), labels[:, row].flatten()
            weight = torch.ones(logits.shape[1], device=logits.device)
            weight[len(COLORS) :] = 0.1 if name == "color" else 1.0
            losses[name] = F.cross_entropy(logits, target, weight, ignore_index=IGNORE)
            known = target != IGNORE if name != "color" else target != len(COLORS)
            right[name] = (logits.argmax(-1)[known] == target[known]).float().mean().item()
        losses["view"] = F.binary_cross_entropy_with_logits(heads["view"](out.pooler_output), view.to(args.device))
        loss = losses["color"] + losses["shape"] + 1.5 * losses["tens"] + 1.5 * losses["units"] + 2 * losses["view"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        step += 1
        right["view loss"] = losses["view"].item()
        running = {k: 0.95 * running.get(k, v) + 0.05 * v for k, v in right.items()}
        if step % 100 == 0:
            print(
                f"{step} {time.time() - start:.0f}s " + " ".join(f"{k} {v:.3f}" for k, v in running.items()), flush=True
            )
        if step % 500 == 0 or step == args.steps:
            state = {"tower": tower.state_dict(), "heads": heads.state_dict(), "step": step}
            state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            torch.save(state, args.out.with_suffix(".tmp"))
            args.out.with_suffix(".tmp").replace(args.out)


if __name__ == "__main__":
    main()
