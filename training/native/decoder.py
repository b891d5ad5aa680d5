"""The decoder: transformers' weights, a forward pass over turns about pictures, and what is learnt from it."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batches import SEEING, TURNS
from native.asking import ANY_TOKEN, CENTRE_COLOR, KINDS, KNOWN, LAYERS, WORD
from native.build import END, MOST, START, WIDTH, tokenizer
from native.feed import Batch
from native.tower import rms, rotated
from tower import IGNORE, PARTS

OPENING = ("<s>", "<user>", START)
BEFORE = len(OPENING)
GUIDE_WEIGHT, KNOWN_WEIGHT, PLACE_WEIGHT, AGAIN_WEIGHT = 1.5, 0.5, 0.25, 0.5
DIGIT_WEIGHT = 3.0  # of a digit in an answer, over that of a word
PLACED = (1, 2)  # layers after which picture tokens are asked for their column and row
AGAIN_AFTER = 3  # layers after which names are asked for column and row once more


class Read(NamedTuple):
    """What the decoder made of a step. B pictures, c tokens of each, T text tokens, L in all, K words that know."""

    logits: Tensor
    """(B, T, vocabulary): of each text token, read where the one before it stands."""
    seen: list[Tensor]
    """Per layer, attention of text tokens, float (B, heads, T, L)."""
    states: list[Tensor]
    """Before the first layer and after each, (B, L, WIDTH)."""


class Readers(nn.ModuleDict):
    """Read-outs of words that name something, of picture tokens, and of names once more."""

    def __init__(self) -> None:
        classes = {f"name {name}": many for name, many in KNOWN.items()}
        classes |= {f"{what} {name}": MOST for name in ("col", "row") for what in ("1", "2", "again")}
        super().__init__(
            {name: nn.Sequential(nn.RMSNorm(WIDTH), nn.Linear(WIDTH, many)) for name, many in classes.items()}
        )


@lru_cache(maxsize=64)
def constant(values: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)


@lru_cache(maxsize=8)
def word_weights(size: int, device: torch.device) -> Tensor:
    """Of the words of an answer, (size,)."""
    weights = torch.ones(size)
    digits = [f"▁{digit}" for digit in range(10)] + list("0123456789")
    weights[tokenizer().convert_tokens_to_ids(digits)] = DIGIT_WEIGHT
    return weights.to(device)


def positions(size: tuple[int, int], visual: Tensor, place: Tensor) -> Tensor:
    """int64 (3, B, L): as transformers numbers the full prompt, those of dropped tokens left out.

    Args:
        size: Height and width of the pictures in tokens.
        visual: int64 (B, c), the tokens that are kept.
        place: int64 (B, T), within the turn.
    """
    b = len(visual)
    picture = torch.stack([torch.full_like(visual, BEFORE), BEFORE + visual // size[1], BEFORE + visual % size[1]])
    end = BEFORE + max(size)
    opening = torch.arange(BEFORE, device=visual.device).expand(3, b, -1)
    closing = torch.full((3, b, 1), end, device=visual.device)
    return torch.cat([opening, picture, closing, (end + 1 + place).expand(3, -1, -1)], 2)


def rotation(language: nn.Module, places: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each float (B, L, 1, dim of a head), of positions (3, B, L): sections of the frequencies take turns."""
    rope = language.rotary_emb
    parts = (places[..., None].float() * rope.inv_freq).split(
        list(language.config.rope_parameters["mrope_section"]), -1
    )
    angle = torch.cat([part[number % 3] for number, part in enumerate(parts)], -1)
    angle = torch.cat([angle, angle], -1)[:, :, None]
    return angle.cos(), angle.sin()


def turns_mask(turn: Tensor, before: int) -> Tensor:
    """A turn sees the picture and itself up to each word, (B, 1, T, L), 0 or -inf."""
    same = (turn[:, :, None] == turn[:, None]).tril()
    own = torch.zeros(same.shape, device=turn.device).masked_fill(~same, -torch.inf)
    return F.pad(own, (before, 0))[:, None]


def layer_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Causal among the picture's tokens; the last mask.shape[2], the turns, see what `mask` allows.

    Args:
        q: (B, heads, L, dim), as k and v.
        mask: Of `turns_mask`.

    Returns:
        (B, L, heads * dim), and the turns' attention, float (B, heads, T, L).
    """
    picture = q.shape[2] - mask.shape[2]
    first = F.scaled_dot_product_attention(q[:, :, :picture], k[:, :, :picture], v[:, :, :picture], is_causal=True)
    scores = q[:, :, picture:] @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = (scores + mask).softmax(-1)
    both = torch.cat([first, weights.to(v.dtype) @ v], 2)
    return both.transpose(1, 2).flatten(2), weights


def read(model: nn.Module, batch: Batch, tokens: Tensor) -> Read:
    """Runs the decoder over a step.

    Args:
        model: A Qwen2_5_VLForConditionalGeneration.
        batch: The step.
        tokens: What the tower's `features` returned for its pictures.
    """
    language, arrays = model.model.language_model, batch.arrays
    visual, place = arrays["visual"].long(), arrays["place"].long()
    kept = tokens.gather(1, visual[..., None].expand(-1, -1, tokens.shape[-1]))
    ids = tokenizer().convert_tokens_to_ids([*OPENING, END])
    framed = language.embed_tokens(constant(tuple(ids), tokens.device)).expand(len(visual), -1, -1)
    text = language.embed_tokens(arrays["ids"].long())
    x = torch.cat([framed[:, :BEFORE], kept.float(), framed[:, BEFORE:], text], 1)
    before = x.shape[1] - text.shape[1]
    cos, sin = rotation(language, positions(tuple(batch.numbers["size"][:2]), visual, place))
    mask = turns_mask(arrays["turn"], before)
    seen, states = [], [x]
    for layer in language.layers:
        mine, y = layer.self_attn, rms(x, layer.input_layernorm)
        q, k, v = (part(y).view(*y.shape[:2], -1, mine.head_dim) for part in (mine.q_proj, mine.k_proj, mine.v_proj))
        q, k = (rotated(t, cos, sin).to(v.dtype) for t in (q, k))
        out, weights = layer_attention(*(t.transpose(1, 2) for t in (q, k, v)), mask)
        x = x + mine.o_proj(out)
        mlp, y = layer.mlp, rms(x, layer.post_attention_layernorm)
        x = x + mlp.down_proj(F.silu(mlp.gate_proj(y)) * mlp.up_proj(y))
        seen.append(weights)
        states.append(x)
    # The state before a token predicts it; a turn's first token is never learnt.
    return Read(model.lm_head(rms(x[:, before - 1 : -1], language.norm)), seen, states)


def mean_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of what is not IGNORE; zero where all is."""
    summed = F.cross_entropy(logits.float().flatten(0, -2), target.flatten(), ignore_index=IGNORE, reduction="sum")
    return summed / (target != IGNORE).sum().clamp(min=1)


def answer_loss(found: Read, batch: Batch) -> Tensor:
    """Weighted mean over the tokens of all answers."""
    ids = batch.arrays["ids"].long()
    losses = F.cross_entropy(found.logits.float().flatten(0, 1), ids.flatten(), reduction="none")
    weights = word_weights(found.logits.shape[-1], ids.device)[ids] * batch.arrays["answer"]
    return (losses * weights.flatten()).sum() / weights.sum()


def key_table(batch: Batch) -> Tensor:
    """int64 (B, kinds of keys that picture tokens can be, c): what each kept token is, -1 for nothing."""
    arrays = batch.arrays
    visual = arrays["visual"].long()[:, None].expand(-1, len(PARTS), -1)
    parts = arrays["owners"].long().gather(2, visual)
    centre = parts[:, PARTS.index("centre")]
    color = arrays["things"][:, :, 0].long().gather(1, centre.clamp(min=0))
    color = torch.where(centre < 0, -1, color)
    table = {CENTRE_COLOR: color, ANY_TOKEN: torch.zeros_like(color)}
    return torch.cat([parts, *(table[kind][:, None] for kind in sorted(table))], 1)


def guidance(found: Read, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss of the guided heads, and the share of the seeing ones' attention that is where it should be.

    Heads that may look at <s> should look at it and at everything else they may look at alike, so that what <s> gets tells
    the number; all others anywhere on what a word names. Words whose keys were all dropped are left out.
    """
    table, length = key_table(batch), found.seen[0].shape[-1]
    texts = length - found.logits.shape[1]
    at_text = torch.arange(length, device=table.device) - texts
    losses, counted, looked, looking = [], [], [], []
    for layer, rows in zip(LAYERS, batch.arrays["guided"].long().split(batch.numbers["guided_of"]), strict=True):
        picture, word, _, head, kind, which, start = rows.unbind(1)
        own = (table[picture, kind.clamp(max=ANY_TOKEN)] == which[:, None]) & (kind != WORD)[:, None]
        wanted = (at_text == which[:, None]) & (kind == WORD)[:, None]
        wanted[:, BEFORE : BEFORE + own.shape[1]] = own
        wanted[:, 0] = start.bool()
        here = found.seen[layer][picture, head, word].clamp(min=1e-6)
        mass, many = (here * wanted).sum(1), wanted.sum(1)
        spread = -(here.log() * wanted).sum(1) / many.clamp(min=1)
        some = (many > 0).float()
        losses.append((torch.where(start.bool(), spread, -mass.clamp(min=1e-6).log()) * some).sum())
        counted.append(some.sum())
        if layer == SEEING:
            clear = some * (1 - start)
            looked.append((mass * clear).sum())
            looking.append(clear.sum())
    share = sum(looked) / sum(looking).clamp(min=1)
    return sum(losses) / sum(counted).clamp(min=1), share.detach()


def knowledge(readers: Readers, found: Read, batch: Batch) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """The weighted loss of what words and picture tokens know, and the logits and targets of every read-out."""
    arrays, size = batch.arrays, batch.numbers["size"]
    visual, knowing = arrays["visual"].long(), arrays["knowing"].long()
    picture, word, known = knowing[:, 0], knowing[:, 1], knowing[:, 2:]
    before = found.states[0].shape[1] - arrays["ids"].shape[1]
    names = found.states[SEEING + 1][picture, before + word]
    again = found.states[AGAIN_AFTER][picture, before + word]
    asked = {f"name {name}": (names, known[:, column], KNOWN_WEIGHT) for column, name in enumerate(KNOWN)}
    for name, place in (("col", visual % size[1]), ("row", visual // size[1])):
        asked[f"again {name}"] = (again, known[:, list(KNOWN).index(name)], AGAIN_WEIGHT)
        for layer in PLACED:
            state = found.states[layer][:, BEFORE : BEFORE + visual.shape[1]]
            asked[f"{layer} {name}"] = (state, place, PLACE_WEIGHT)
    loss, said = torch.zeros((), device=visual.device), {}
    for name, (state, target, weight) in asked.items():
        logits = readers[name](state.float())
        loss = loss + weight * mean_loss(logits, target)
        said[name] = (logits.detach(), target)
    return loss, said


def shares(said: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """How often each read-out is right. Waits for the device."""
    right = {name: (logits.argmax(-1) == target).sum() for name, (logits, target) in said.items()}
    many = {name: (target != IGNORE).sum() for name, (_, target) in said.items()}
    return {name: right[name].item() / n for name in said if (n := many[name].item())}


def answered(found: Read, batch: Batch) -> Tensor:
    """int64 (2, len(KINDS)): turns whose whole answer is the most likely one, and turns, of each kind; on the device."""
    arrays = batch.arrays
    wrong = (found.logits.argmax(-1) != arrays["ids"]) & (arrays["answer"] > 0)
    turn, kinds = arrays["turn"].long(), arrays["kinds"].long().flatten()
    mistakes = torch.zeros(len(turn), TURNS, device=turn.device).scatter_add(1, turn.clamp(min=0), wrong.float())
    there = (kinds >= 0).long()
    right = there * (mistakes.flatten() == 0)
    out = torch.zeros(2, len(KINDS), dtype=torch.long, device=turn.device)
    return out.scatter_add(1, kinds.clamp(min=0).expand(2, -1), torch.stack([right, there]))
