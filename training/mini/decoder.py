"""Step 2: projector, newline and decoder on top of the frozen tower, whose features are computed once per picture.

First captions of all tags in random order and look-ups of present and absent ones, on few tokens per picture (the tags'
and some background): nearly every word is supervised, and the step from reading to binding takes minutes. Then questions on the full prompt,
packed as LLaVA-NeXT packs it, crops, newlines and all.

    python decoder.py TOWER.pt OUT.pt --pictures 7000 --captions 2500 --questions 4000     resumes from OUT.pt
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
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
from scenes import VIEW, Tag, caption, look_ups, question, scene
from tower import PATCH, SIDE, normalise

IGNORE = -100
CROP_PLACES, THUMBNAIL_PLACES = 64, 12  # tokens per picture while captions are learnt
QUESTIONS = 8


def cut(image: Image.Image) -> np.ndarray:
    """Thumbnail and crops of a picture at its native size, uint8 (views, 3, VIEW, VIEW), as the processor cuts them."""
    rows, cols = image.height // VIEW, image.width // VIEW
    crops = np.asarray(image).reshape(rows, VIEW, cols, VIEW, 3).transpose(0, 2, 1, 3, 4).reshape(-1, VIEW, VIEW, 3)
    thumbnail = np.asarray(image.resize((VIEW, VIEW), Image.Resampling.BICUBIC))
    return np.concatenate([thumbnail[None], crops]).transpose(0, 3, 1, 2)


class Pictures(Dataset):
    """Scene `index` as (views, grid, tags)."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        grid = random.Random(f"grid-{index}").choices(
            [(2, 2), (1, 2), (2, 1), (1, 3), (3, 1), (3, 3)], [5, 1, 1, 1, 1, 1.2]
        )[0]
        image, tags = scene(f"decoder-{index}", grids=(grid,), tags=(1, 5))
        return torch.from_numpy(cut(image)), grid, tags


@torch.no_grad()
def bank(tower, count: int, device: str):
    """Tower features of `count` pictures, by grid: lists of (float16 (views * tokens, dim), tags)."""
    pictures, start = defaultdict(list), time.time()
    loader = DataLoader(Pictures(count), batch_size=None, collate_fn=tuple, num_workers=1)
    for done, (views, grid, tags) in enumerate(loader):
        out = tower(normalise(views).to(device), output_hidden_states=True)
        pictures[grid].append((out.hidden_states[-2][:, 1:].flatten(0, 1).half().cpu(), tags))
        if done % 500 == 0:
            print(f"features {done} {time.time() - start:.0f}s", flush=True)
    return dict(pictures)


def caption_places(tags: list[Tag], grid: tuple[int, int], rng: random.Random) -> np.ndarray:
    """Indices into [thumbnail | crops row-major] tokens: those on tags, then background at random."""
    rows, cols = grid
    wanted = np.zeros((rows, cols, SIDE, SIDE), bool)
    for tag in tags:
        reach = tag.radius * 0.8
        for y in range(int((tag.y - reach) // PATCH), int((tag.y + reach) // PATCH) + 1):
            for x in range(int((tag.x - reach) // PATCH), int((tag.x + reach) // PATCH) + 1):
                if 0 <= y < rows * SIDE and 0 <= x < cols * SIDE:
                    wanted[y // SIDE, x // SIDE, y % SIDE, x % SIDE] = True
    chosen = np.flatnonzero(wanted.ravel()).tolist()
    chosen = chosen if len(chosen) <= CROP_PLACES else rng.sample(chosen, CROP_PLACES)
    rest = np.setdiff1d(np.arange(wanted.size), chosen).tolist()
    chosen = sorted(chosen + rng.sample(rest, CROP_PLACES - len(chosen)))
    thumbnail = sorted(rng.sample(range(SIDE * SIDE), THUMBNAIL_PLACES))
    return np.array(thumbnail + [SIDE * SIDE + place for place in chosen])


Segments = list[tuple[str, bool]]  # pieces of text, and whether they are to be learnt


def caption_segments(rng: random.Random, tags: list[Tag]) -> Segments:
    """A caption, or look-ups whose answers alone are learnt."""
    if rng.random() < 0.5:
        return [("<assistant>", False), (caption(rng, tags) + "</s>", True)]
    pairs = [((asked, False), (answer, True)) for asked, answer in look_ups(rng, tags)]
    return [("<assistant>", False), *[segment for pair in pairs for segment in pair]]


def question_segments(rng: random.Random, tags: list[Tag]) -> Segments:
    """Several turns about one picture."""
    segments: Segments = []
    for asked, answer in dict(question(rng, tags)[1:] for _ in range(QUESTIONS)).items():
        opening = "<user>" if segments else ""
        segments += [(f"{opening}{asked}<assistant>", False), (answer + "</s>", True)]
    return segments


def texts(tokens, segments: Segments) -> tuple[list[int], list[int]]:
    """Ids after the image, and labels."""
    ids, labels = [], []
    for text, learnt in segments:
        part = tokens(text, add_special_tokens=False).input_ids
        ids += part
        labels += part if learnt else [IGNORE] * len(part)
    return ids, labels


def batch_of(pictures, tokens, phase: str, step: int, size: int):
    """(features, grid, chosen places or None, ids, labels) of training step `step`."""
    rng = random.Random(f"{phase}-{step}")
    grids = [g for g in pictures if g != (3, 3) or phase == "questions"]
    grid = rng.choices(grids, [len(pictures[g]) for g in grids])[0]
    size = size if grid != (3, 3) else size // 2  # its prompts are twice as long
    chosen = [rng.choice(pictures[grid]) for _ in range(size)]
    places, rows = [], []
    for _, tags in chosen:
        if phase == "captions":
            places.append(caption_places(tags, grid, rng))
        # Two fifths of the question phase stay captions, to keep the look-ups alive.
        captions = phase == "captions" or rng.random() < 0.4
        rows.append(texts(tokens, (caption_segments if captions else question_segments)(rng, tags)))
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*i, *[tokens.pad_token_id] * (longest - len(i))] for i, _ in rows])
    labels = torch.tensor([[*i, *[IGNORE] * (longest - len(i))] for _, i in rows])
    features = torch.stack([f for f, _ in chosen]).float()
    return features, grid, torch.tensor(np.stack(places)) if places else None, ids, labels


def visual(model, features: torch.Tensor, grid: tuple[int, int], places: torch.Tensor | None) -> torch.Tensor:
    """Projected features (batch, n, dim): the chosen places only, or the whole run as LLaVA-NeXT packs it."""
    if places is not None:
        features = features.gather(1, places[..., None].expand(-1, -1, features.shape[-1]))
        return model.model.multi_modal_projector(features)
    # Scenes have their native size, so nothing is padded and one layout serves the batch.
    layout = LlavaNextAdapter().layout(model.config, grid[0] * VIEW, grid[1] * VIEW)
    projected = model.model.multi_modal_projector(features)
    newline = model.model.image_newline.expand(len(features), int(layout.lines.max()) + 1, -1)
    return torch.cat([projected, newline], 1)[:, layout.slots.to(features.device)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tower", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=int, default=7000)
    parser.add_argument("--captions", type=int, default=2500, help="steps")
    parser.add_argument("--questions", type=int, default=4000, help="steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tokens = build_processor().tokenizer
    model = build_model(tokens).to(args.device)
    done = {"captions": 0, "questions": 0}
    saved = torch.load(args.out, map_location=args.device) if args.out.exists() else None
    if saved is not None:
        model.load_state_dict(saved["model"])
        done = saved["done"]
    tower = model.model.vision_tower
    tower.load_state_dict(torch.load(args.tower, map_location=args.device)["tower"])
    tower.requires_grad_(False).eval()
    pictures = bank(tower, args.pictures, args.device)
    trained = [p for p in model.parameters() if p.requires_grad]
    digits = torch.tensor(
        tokens.convert_tokens_to_ids([f"▁{d}" for d in range(10)] + list("0123456789")), device=args.device
    )
    opening = torch.tensor(tokens.convert_tokens_to_ids(["<s>", "<user>"]), device=args.device)
    embed = model.get_input_embeddings()

    for phase, steps, size, rate in (("captions", args.captions, 24, 2e-3), ("questions", args.questions, 8, 1e-3)):
        if done[phase] >= steps:
            continue
        optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.05)
        if saved is not None and saved["phase"] == phase:
            optimizer.load_state_dict(saved["optimizer"])
            schedule.load_state_dict(saved["schedule"])
        start, running = time.time(), {}
        while done[phase] < steps:
            features, grid, places, ids, labels = batch_of(pictures, tokens, phase, done[phase], size)
            ids, labels = ids.to(args.device), labels.to(args.device)
            image = visual(model, features.to(args.device), grid, None if places is None else places.to(args.device))
            embedded = torch.cat([embed(opening).expand(len(ids), -1, -1), image, embed(ids)], 1)
            hidden = model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            # The state before a text token predicts it.
            logits = model.lm_head(hidden[:, -ids.shape[1] - 1 : -1])
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
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
