"""Step 2: projector, newline and decoder on top of the frozen tower, whose features are computed once per picture.

First captions of pictures with few tags, where every word is supervised: from them the step from reading to binding takes
minutes, and with look-ups or more tags from the start it does not come. Then captions and look-ups of everything, then
questions. Most steps see a part of the visual tokens, which is
several times cheaper than all of them: some tokens of every tag and line and others at random, newlines all or none, in
the order in which LLaVA-NeXT packs them. No selector has a say in that. The other question steps see all tokens.

    python decoder.py TOWER.pt OUT.pt --pictures 6000 --binding 500 --captions 1000 --questions 4000   resumes from OUT.pt
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from build import model as build_model
from build import processor as build_processor
from globalcom2.adapters.llava_next import LlavaNextAdapter
from questions import KINDS, caption, look_ups, question
from scenes import VIEW, Scene, scene
from tower import PATCH, SIDE, hidden_state, normalise

IGNORE = -100
TOKENS = SIDE * SIDE
QUESTIONS = 8
# How often each kind is asked, where the scene allows it.
FREQUENCY = {"read": 2, "exists": 2, "count": 1.5, "color": 1.5, "left": 2, "largest": 1, "document": 4}
PHASES = {"binding": 2e-3, "captions": 1.5e-3, "questions": 1.5e-3}  # learning rates
DIGITS = {"binding": 4.0, "captions": 2.0, "questions": 1.0}  # weight of a digit over that of a word
FEW_TAGS = 3  # in a picture of the first phase
ALL_TOKENS = 0.35  # share of the question steps


def cut(image: Image.Image) -> np.ndarray:
    """Thumbnail and crops of a picture at its native size, uint8 (views, 3, VIEW, VIEW), as the processor cuts them."""
    rows, cols = image.height // VIEW, image.width // VIEW
    crops = np.asarray(image).reshape(rows, VIEW, cols, VIEW, 3).transpose(0, 2, 1, 3, 4).reshape(-1, VIEW, VIEW, 3)
    thumbnail = np.asarray(image.resize((VIEW, VIEW), Image.Resampling.BICUBIC))
    return np.concatenate([thumbnail[None], crops]).transpose(0, 3, 1, 2)


class Pictures(Dataset):
    """Scene `index` as (views, scene without its image)."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        shown = scene(f"decoder-{index}")
        return torch.from_numpy(cut(shown.image)), replace(shown, image=Image.new("1", shown.image.size))


@torch.no_grad()
def bank(tower, count: int, device: str, path: Path):
    """Tower features of `count` pictures, by grid: lists of (float16 (views * tokens, dim), scene). Kept in `path`."""
    if path.exists():
        return torch.load(path, weights_only=False)
    pictures, start = defaultdict(list), time.time()
    loader = DataLoader(Pictures(count), batch_size=None, collate_fn=tuple, num_workers=1)
    for done, (views, shown) in enumerate(loader):
        features = hidden_state(tower, normalise(views).to(device))[:, 1:]
        pictures[shown.grid].append((features.flatten(0, 1).half().cpu(), shown))
        if done % 500 == 0:
            print(f"features {done} {time.time() - start:.0f}s", flush=True)
    torch.save(dict(pictures), path)
    return dict(pictures)


@cache
def packing(grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """LLaVA-NeXT's order for a picture of native size: what stands in each place (tokens first, newlines after them),
    and the place of each crop token, (rows * SIDE, cols * SIDE)."""
    layout = LlavaNextAdapter().layout(build_config(), grid[0] * VIEW, grid[1] * VIEW)
    slots = layout.slots.numpy()
    places = np.empty(slots.max() + 1, np.int64)
    places[slots] = np.arange(len(slots))
    crops = places[TOKENS : layout.views * TOKENS].reshape(*grid, SIDE, SIDE)
    return slots, crops.transpose(0, 2, 1, 3).reshape(grid[0] * SIDE, grid[1] * SIDE)


@cache
def build_config():
    return build_model(build_processor().tokenizer).config


def some_places(shown: Scene, rng: random.Random, count: int, fewest: int) -> np.ndarray:
    """`count` places of the packed run, ascending: `fewest` tokens of everything shown or up to twice as many, then others
    at random."""
    slots, crops = packing(shown.grid)
    boxes = [
        (t.x - 0.8 * t.radius, t.y - 0.8 * t.radius, t.x + 0.8 * t.radius, t.y + 0.8 * t.radius) for t in shown.tags
    ]
    boxes += [box for line in shown.lines for box in line.boxes()]
    chosen = set()
    for left, top, right, bottom in boxes:
        rows = slice(max(0, int(top // PATCH)), int(bottom // PATCH) + 1)
        cols = slice(max(0, int(left // PATCH)), int(right // PATCH) + 1)
        own = crops[rows, cols].ravel().tolist()
        chosen.update(rng.sample(own, min(len(own), rng.randint(fewest, 2 * fewest))))
        x, y = (left + right) / 2 / shown.image.width, (top + bottom) / 2 / shown.image.height
        chosen.add(int(y * SIDE) * SIDE + int(x * SIDE))  # the thumbnail comes first and has no newlines
    if fewest < SIDE * SIDE and rng.random() < 0.5:
        chosen.update(np.flatnonzero(slots >= (1 + shown.grid[0] * shown.grid[1]) * TOKENS).tolist())
    picked = sorted(chosen)
    if len(picked) > count:
        return np.array(sorted(rng.sample(picked, count)))
    rest = np.setdiff1d(np.arange(len(slots)), picked).tolist()
    return np.array(sorted(picked + rng.sample(rest, count - len(picked))))


Segments = list[tuple[str, bool]]  # pieces of text, and whether they are to be learnt


def caption_segments(rng: random.Random, shown: Scene, captions: float = 0.4) -> Segments:
    """A caption, or look-ups whose answers alone are learnt; `captions` is the share of the former."""
    if rng.random() < captions:
        return [("<assistant>", False), (caption(rng, shown) + "</s>", True)]
    pairs = [((asked, False), (answer, True)) for asked, answer in look_ups(rng, shown)]
    return [("<assistant>", False), *[segment for pair in pairs for segment in pair]]


def question_segments(rng: random.Random, shown: Scene) -> Segments:
    """Several turns about one picture."""
    kinds = rng.choices(KINDS, [FREQUENCY[kind] for kind in KINDS], k=2 * QUESTIONS)
    asked = {q[1]: q[2] for q in (question(rng, shown, kind) for kind in kinds) if q is not None}
    segments: Segments = []
    for text, answer in list(asked.items())[:QUESTIONS]:
        segments += [(f"{'<user>' if segments else ''}{text}<assistant>", False), (answer + "</s>", True)]
    return segments or caption_segments(rng, shown)


def texts(tokens, segments: Segments) -> tuple[list[int], list[int]]:
    """Ids after the image, and labels."""
    ids, labels = [], []
    for text, learnt in segments:
        part = tokens(text, add_special_tokens=False).input_ids
        ids += part
        labels += part if learnt else [IGNORE] * len(part)
    return ids, labels


def with_few_tags(pictures):
    """The pictures, by grid, that have one to FEW_TAGS tags."""
    few = {grid: [(f, s) for f, s in own if 1 <= len(s.tags) <= FEW_TAGS] for grid, own in pictures.items()}
    return {grid: own for grid, own in few.items() if own}


def batch_of(pictures, tokens, phase: str, step: int):
    """(features, what stands in each place (batch, n), ids, labels) of training step `step`."""
    rng = random.Random(f"{phase}-{step}")
    asking = phase == "questions"
    everything = asking and rng.random() < ALL_TOKENS
    grid = rng.choices(list(pictures), [len(of_grid) for of_grid in pictures.values()])[0]
    slots = packing(grid)[0]
    size = max(2, 3600 // (len(slots) + 100)) if everything else 16 if asking else 24
    chosen = [rng.choice(pictures[grid]) for _ in range(size)]
    # Captions see all that tags and lines cover: with few tokens of each, attention does not learn where to look. In
    # questions, too, a digit that is asked for should mostly be there.
    if asking:
        count, fewest = rng.choice((64, 96, 128)), rng.choice((3, 8, SIDE * SIDE))
    else:
        count, fewest = 48 if phase == "binding" else 72, SIDE * SIDE
    count = min(len(slots), count)
    places = [slots if everything else slots[some_places(shown, rng, count, fewest)] for _, shown in chosen]
    rows = []
    for _, shown in chosen:
        # A quarter of the question phase stay captions, to keep the look-ups alive.
        if asking and rng.random() > 0.25:
            rows.append(texts(tokens, question_segments(rng, shown)))
        else:
            rows.append(texts(tokens, caption_segments(rng, shown, 1.0 if phase == "binding" else 0.4)))
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*i, *[tokens.pad_token_id] * (longest - len(i))] for i, _ in rows])
    labels = torch.tensor([[*i, *[IGNORE] * (longest - len(i))] for _, i in rows])
    features = torch.stack([f for f, _ in chosen]).float()
    return features, torch.tensor(np.stack(places)), ids, labels


def visual(model, features: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Projected features and newlines, (batch, n, dim)."""
    newline = places >= features.shape[1]
    index = places.clamp(max=features.shape[1] - 1)[..., None].expand(-1, -1, features.shape[-1])
    projected = model.model.multi_modal_projector(features.gather(1, index))
    return torch.where(newline[..., None], model.model.image_newline, projected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tower", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=int, default=8000)
    parser.add_argument("--binding", type=int, default=500, help="steps")
    parser.add_argument("--captions", type=int, default=1000, help="steps")
    parser.add_argument("--questions", type=int, default=4000, help="steps")
    parser.add_argument("--start", type=Path, help="decoder to start from instead of random weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tokens = build_processor().tokenizer
    model = build_model(tokens).to(args.device)
    if args.start:
        model.load_state_dict(torch.load(args.start, map_location=args.device)["model"])
    done = dict.fromkeys(PHASES, 0)
    saved = torch.load(args.out, map_location=args.device) if args.out.exists() else None
    if saved is not None:
        model.load_state_dict(saved["model"])
        done = saved["done"]
    tower = model.model.vision_tower
    tower.load_state_dict(torch.load(args.tower, map_location=args.device)["tower"])
    tower.requires_grad_(False).eval()
    pictures = bank(tower, args.pictures, args.device, args.out.with_suffix(".features"))
    trained = [p for p in model.parameters() if p.requires_grad]
    digits = torch.tensor(
        tokens.convert_tokens_to_ids([f"▁{d}" for d in range(10)] + list("0123456789")), device=args.device
    )
    opening = torch.tensor(tokens.convert_tokens_to_ids(["<s>", "<user>"]), device=args.device)
    embed = model.get_input_embeddings()

    few = with_few_tags(pictures)
    for phase, rate in PHASES.items():
        steps = getattr(args, phase)
        if done[phase] >= steps:
            continue
        optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.05)
        if saved is not None and saved["phase"] == phase:
            optimizer.load_state_dict(saved["optimizer"])
            schedule.load_state_dict(saved["schedule"])
        start, running = time.time(), {}
        while done[phase] < steps:
            features, places, ids, labels = (
                x.to(args.device) for x in batch_of(few if phase == "binding" else pictures, tokens, phase, done[phase])
            )
            embedded = torch.cat(
                [embed(opening).expand(len(ids), -1, -1), visual(model, features, places), embed(ids)], 1
            )
            hidden = model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            # The state before a text token predicts it.
            logits = model.lm_head(hidden[:, -ids.shape[1] - 1 : -1])
            losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
            weight = (labels != IGNORE) * (1.0 + (DIGITS[phase] - 1) * torch.isin(labels, digits))
            loss = (losses * weight.flatten()).sum() / weight.sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            done[phase] += 1
            right, asked = logits.argmax(-1) == labels, labels != IGNORE
            number = torch.isin(labels, digits) & asked
            now = {
                "loss": loss.item(),
                "digits": right[number].float().mean().item() if number.any() else 0.0,
                "words": right[asked & ~number].float().mean().item(),
            }
            running = {k: 0.97 * running.get(k, v) + 0.03 * v for k, v in now.items()}
            if done[phase] % 50 == 0:
                took = f"{phase} {done[phase]} {time.time() - start:.0f}s "
                print(took + " ".join(f"{k} {v:.3f}" for k, v in running.items()), flush=True)
            if done[phase] % 250 == 0 or done[phase] == steps:
                state = {"model": model.state_dict(), "done": dict(done), "phase": phase}
                state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
                torch.save(state, args.out.with_suffix(".tmp"))
                args.out.with_suffix(".tmp").replace(args.out)
        saved = None


if __name__ == "__main__":
    main()
