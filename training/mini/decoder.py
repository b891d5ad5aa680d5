"""Step 2: projector, newline and decoder, first on top of the tower as it is, then together with it.

The decoder learns to answer questions. What it finds hard to learn from answers alone is where to look, so that is taught:
some heads of its first three layers are asked to look, from the word that names a tag, at the patches where the tag's
digits, colour or centre are, and from the answer at the name (`batches.py` knows where); and what such a word has found
out is read from it. The tower, once it learns too, keeps its own labels. The weights are an ordinary LLaVA-NeXT's all the same.

    python decoder.py TOWER.pt OUT.pt --frozen 600 --together 975        resumes from OUT.pt if it is there
    python decoder.py OUT.pt MORE.pt --seed more --frozen 0              goes on from what this wrote
    python decoder.py MODEL MORE.pt --seed more --frozen 400             goes on from an exported model
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from transformers import AttentionInterface

from batches import GUIDES, KNOWN, OPENING, SEEING, Batch, Pictures, tokenizer
from build import averaged
from build import model as build_model
from tower import (
    IGNORE,
    MEASURED,
    Heads,
    Labelled,
    attention_of,
    hidden_state,
    last_state,
    machine_arguments,
    made_with,
    normalise,
    prepare,
    read_out,
    resumed,
)

GUIDE_WEIGHT, KNOWN_WEIGHT, TOWER_WEIGHT = 1.5, 0.5, 0.5
DIGIT_WEIGHT = 3.0  # of a digit in an answer, over that of a word
TOWER_RATE = 0.5  # of the decoder's learning rate


def attention(module, query, key, value, mask, scaling, **_):
    """Causal among the picture's tokens; the last mask.shape[2] tokens, the turns, see what `mask` allows.

    Args:
        module: The layer's attention; guided ones keep their turns' attention in `seen`.
        query: (batch, heads, length, dim), as key and value.
        mask: Added to the turns' scores, (batch, 1, turns, length).
        scaling: Of the scores.

    Returns:
        (batch, length, heads, dim), and None for the weights.
    """
    turns = mask.shape[2]
    picture = query.shape[2] - turns
    first = F.scaled_dot_product_attention(
        query[:, :, :picture], key[:, :, :picture], value[:, :, :picture], is_causal=True, scale=scaling
    )
    scores = query[:, :, picture:] @ key.transpose(-1, -2) * scaling
    weights = (scores + mask.to(scores.dtype)).float().softmax(-1)
    if module.layer_idx in GUIDES:
        module.seen = weights
    return torch.cat([first, weights.to(value.dtype) @ value], 2).transpose(1, 2), None


AttentionInterface.register("turns", attention)


def turns_mask(batch: Batch) -> torch.Tensor:
    """A turn sees the picture and itself up to each word, (B, 1, T, length), 0 or -inf."""
    same = batch.turn[:, :, None] == batch.turn[:, None]
    seen = F.pad(same.tril(), (OPENING + batch.visual.shape[1], 0), value=True)
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)[:, None]


def run(model, batch: Batch, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits for the turns' labels (B, T, vocabulary), the guided layers' attention (B, layers, heads, T, length), and the
    state after the second layer of words that name something (K, width)."""
    features = model.model.multi_modal_projector(hidden[:, 1:].flatten(0, 1))
    newline = (batch.visual < 0)[..., None]
    visual = torch.where(newline, model.model.image_newline, features[batch.visual.clamp(min=0)])
    embed = model.get_input_embeddings()
    opening = torch.tensor(tokenizer().convert_tokens_to_ids(["<s>", "<user>"]), device=hidden.device)
    embedded = torch.cat([embed(opening).expand(len(visual), -1, -1), visual, embed(batch.ids)], 1)
    picture = OPENING + visual.shape[1]
    positions = torch.arange(picture, device=hidden.device).expand(len(visual), -1)
    positions = torch.cat([positions, picture + batch.place], 1)
    language = model.model.language_model
    out = language(
        inputs_embeds=embedded,
        position_ids=positions,
        attention_mask=turns_mask(batch),
        use_cache=False,
        output_hidden_states=True,
    )
    row, word = batch.knowing.unbind(1)
    names = out.hidden_states[SEEING + 1][row, picture + word]
    # The state before a token predicts it; a turn's first token is never learnt.
    seen = torch.stack([language.layers[layer].self_attn.seen for layer in GUIDES], 1)
    return model.lm_head(out.last_hidden_state[:, picture - 1 : -1]), seen, names


def read_names(reader: nn.ModuleDict, names: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Loss of what a word knows about the thing that it names."""
    loss = torch.zeros((), device=names.device)
    for column, name in enumerate(KNOWN):
        known = batch.known[:, column]
        summed = F.cross_entropy(reader[name](names.float()), known, ignore_index=IGNORE, reduction="sum")
        loss = loss + summed / (known != IGNORE).sum().clamp(min=1)
    return loss


def guidance(seen: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of the guided heads, and the share of the seeing ones' attention that is where it should be.

    Heads that may look at <s> should look at it and at everything else they may look at alike, so that what <s> gets tells
    the number; all others anywhere on what a word names.
    """
    picture, word, layer, head = batch.guided.unbind(1)
    counting = batch.targets[:, 0]
    rows = seen[picture, layer, head, word].clamp(min=1e-6)
    found = (rows * batch.targets).sum(1)
    spread = -(rows.log() * batch.targets).sum(1) / batch.targets.sum(1)
    looking = (layer == SEEING) & ~counting
    return torch.where(counting, spread, -found.log()).mean(), (found * looking).sum() / looking.sum()


def answer_loss(logits: torch.Tensor, labels: torch.Tensor, digits: torch.Tensor) -> torch.Tensor:
    """Weighted mean over the tokens of all answers."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
    weights = (labels != IGNORE) * (1.0 + (DIGIT_WEIGHT - 1) * torch.isin(labels, digits))
    return (losses * weights.flatten()).sum() / weights.sum()


def answered(logits: torch.Tensor, batch: Batch) -> list[tuple[str, bool]]:
    """Kind of every turn and whether all of its answer is the most likely one."""
    wrong = ((logits.argmax(-1) != batch.labels) & (batch.labels != IGNORE)).cpu()
    turns = batch.turn.cpu()
    return [
        (kind, not wrong[row][turns[row] == number].any().item())
        for row, kinds in enumerate(batch.kinds)
        for number, kind in enumerate(kinds)
    ]


def moved(batch: Batch, device: str) -> Batch:
    def there(x):
        return x.to(device) if isinstance(x, torch.Tensor) else x

    return Batch(Labelled(*map(there, batch.views)), *map(there, batch[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "begin",
        type=Path,
        nargs="+",
        help="a tower from tower.py, an exported folder, or what this wrote: of several the mean",
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--frozen", type=int, default=600, help="steps in which the tower stays as it is")
    parser.add_argument("--together", type=int, default=975, help="steps after them")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", default="decoder", help="of the pictures; another one to go on from a model")
    parser.add_argument("--batch", type=int, default=48, help="pictures per step")
    machine_arguments(parser)
    args = parser.parse_args()
    if len(args.begin) > 1 and any(begin.is_dir() for begin in args.begin):
        parser.error(
            "begin must be one exported folder or checkpoints, whose mean is taken, got both or several folders"
        )
    prepare(args)
    torch.manual_seed(0)
    model = build_model(tokenizer()).to(args.device)
    tower, language = model.model.vision_tower, model.model.language_model
    heads = Heads(tower.config.hidden_size).to(args.device)
    width = language.config.hidden_size
    reader = nn.ModuleDict({name: nn.Sequential(nn.RMSNorm(width), nn.Linear(width, n)) for name, n in KNOWN.items()})
    reader.to(args.device)
    tower.set_attn_implementation(attention_of(args.device))
    language.set_attn_implementation("turns")
    seeing = [*tower.parameters()]
    in_tower = {id(parameter) for parameter in seeing}
    reading = [parameter for parameter in model.parameters() if id(parameter) not in in_tower]
    reading += [*heads.parameters(), *reader.parameters()]
    rates = [TOWER_RATE * args.rate, args.rate]
    optimizer = torch.optim.AdamW(
        [{"params": group, "lr": rate} for group, rate in zip((seeing, reading), rates, strict=True)],
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=True,
    )
    step, steps = 0, args.frozen + args.together
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, steps, pct_start=0.03)
    if args.out.exists():
        saved = resumed(args)
        for module, name in ((model, "model"), (heads, "heads"), (reader, "reader")):
            module.load_state_dict(saved[name])
        step = saved["step"]
        if step < steps:
            optimizer.load_state_dict(saved["optimizer"])
            schedule.load_state_dict(saved["schedule"])
    elif args.begin[0].is_dir():  # without read-outs: they are learnt anew, on the tower as it is at first
        model.load_state_dict(type(model).from_pretrained(args.begin[0], dtype=torch.float32).state_dict())
    else:
        parts = {"tower": tower, "model": model, "heads": heads, "reader": reader}
        known = averaged(args.begin, args.device)
        if not known:
            raise SystemExit(f"{', '.join(map(str, args.begin))} must all hold a tower, or all a model with read-outs.")
        for name, weights in known.items():
            parts[name].load_state_dict(weights)
    pictures = Pictures(args.frozen, steps, step, args.seed, args.batch)
    data = DataLoader(pictures, batch_size=None, num_workers=args.workers, prefetch_factor=4)
    digits = torch.tensor(tokenizer().convert_tokens_to_ids([f"▁{d}" for d in range(10)] + list("0123456789")))
    digits = digits.to(args.device)
    start, running = time.time(), {}
    for batch in data:
        batch = moved(batch, args.device)
        frozen = step < args.frozen
        with torch.autocast(args.device, torch.bfloat16):
            with torch.set_grad_enabled(not frozen):
                hidden = hidden_state(tower, normalise(batch.views.pixels))
                pooled = last_state(tower, hidden) if step % 2 == 0 else None
            logits, seen, names = run(model, batch, hidden)
        measure = step % MEASURED == 0
        losses, now = read_out(heads, hidden.float(), pooled, batch.views, measure)
        guide, found = guidance(seen, batch)
        answers = answer_loss(logits, batch.labels, digits)
        knows = read_names(reader, names, batch)
        loss = answers + GUIDE_WEIGHT * guide + KNOWN_WEIGHT * knows + TOWER_WEIGHT * sum(losses.values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in (seeing, reading):
            nn.utils.clip_grad_norm_(group, 1.0)
        optimizer.step()
        schedule.step()
        step += 1
        if measure:
            now |= {"answers": answers.item(), "guide": guide.item(), "found": found.item(), "knows": knows.item()}
            running |= {k: 0.9 * running.get(k, v) + 0.1 * v for k, v in now.items() if v == v}
            for kind, right in answered(logits, batch):
                name = kind if batch.everything else f"{kind}'"
                running[name] = 0.99 * running.get(name, float(right)) + 0.01 * right
        if step % 50 == 0:
            took = f"{step} {time.time() - start:.0f}s "
            print(took + " ".join(f"{k} {v:.3f}" for k, v in running.items()), flush=True)
        if step % 500 == 0 or step == steps:
            state = {
                "model": model.state_dict(),
                "heads": heads.state_dict(),
                "reader": reader.state_dict(),
                "step": step,
                "made_with": made_with(args),
            }
            state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            torch.save(state, args.out.with_suffix(".tmp"))
            args.out.with_suffix(".tmp").replace(args.out)


if __name__ == "__main__":
    main()
