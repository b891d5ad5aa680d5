"""The vision tower: transformers' weights, a forward pass over many pictures of one size, and its read-outs."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from native.build import MERGE, PATCH, TOKEN, WIDTH, WINDOW
from native.labels import BACKGROUND, HEADS
from tower import IGNORE, MEAN, STD

PATCHES = MERGE * MERGE  # of a token
WEIGHTS = {"color": 1.0, "shape": 1.0, "tens": 1.5, "units": 1.5, "word": 1.5, "centre": 0.5, "around": 1.0}


class Order(NamedTuple):
    """Tokens of a picture by the windows that the tower attends in, those of a size together."""

    tokens: Tensor
    """int64 (n,): where each one stands in the picture."""
    back: Tensor
    """int64 (n,): the inverse."""
    groups: list[tuple[int, int, int]]
    """First token, windows, tokens per window."""
    cos: Tensor
    """float (n * PATCHES, 1, dim of a head), of the patches in this order; `sin` alike."""
    sin: Tensor


def groups_of(height: int, width: int) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Windows begin at the top left; those at the bottom and at the right may be smaller."""
    at = torch.arange(height * width).view(height, width)
    full_height, full_width = height - height % WINDOW, width - width % WINDOW
    order, groups, first = [], [], 0
    for rows in (slice(0, full_height), slice(full_height, height)):
        for cols in (slice(0, full_width), slice(full_width, width)):
            part = at[rows, cols]
            if not part.numel():
                continue
            high, wide = min(part.shape[0], WINDOW), min(part.shape[1], WINDOW)
            windows = part.reshape(part.shape[0] // high, high, part.shape[1] // wide, wide).transpose(1, 2)
            order.append(windows.reshape(-1))
            groups.append((first, part.numel() // (high * wide), high * wide))
            first += part.numel()
    return torch.cat(order), groups


@lru_cache(maxsize=2048)
def order_of(height: int, width: int, dim: int, device: torch.device) -> Order:
    """Of a picture of that many tokens.

    Args:
        height: Rows of tokens.
        width: Columns of tokens.
        dim: Of a head.
        device: Where the tensors are.
    """
    tokens, groups = groups_of(height, width)
    inner = torch.arange(PATCHES)
    y = (tokens // width)[:, None] * MERGE + inner // MERGE
    x = (tokens % width)[:, None] * MERGE + inner % MERGE
    frequency = 1.0 / 10000.0 ** (torch.arange(0, dim // 2, 2, dtype=torch.float) / (dim // 2))
    angle = torch.cat([place.reshape(-1, 1) * frequency for place in (y, x)], -1)
    angle = torch.cat([angle, angle], -1)[:, None]
    on = [tensor.to(device) for tensor in (tokens, tokens.argsort(), angle.cos(), angle.sin())]
    return Order(on[0], on[1], groups, on[2], on[3])


@lru_cache(maxsize=8)
def scale_and_shift(device: torch.device) -> tuple[Tensor, Tensor]:
    """From uint8 to normalised values, (3, 1), a row for each color."""
    mean, std = (torch.tensor(values, device=device)[:, None] for values in (MEAN, STD))
    return 1 / (255 * std), -mean / std


def patches_of(images: Tensor) -> Tensor:
    """uint8 (B, height, width, 3) px to float (B, tokens, PATCHES, 3, PATCH * PATCH), in the picture's order."""
    b, height, width, _ = images.shape
    rows, cols = height // TOKEN, width // TOKEN
    x = images.view(b, rows, MERGE, PATCH, cols, MERGE, PATCH, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    scale, shift = scale_and_shift(images.device)
    return x.reshape(b, rows * cols, PATCHES, 3, PATCH * PATCH).float() * scale + shift


def rms(x: Tensor, norm: nn.Module) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All to all over the second-last axis. So few tokens train faster without a fused kernel on a CPU."""
    if q.device.type == "cpu":
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


def attention(qkv: tuple[Tensor, Tensor, Tensor], groups: list[tuple[int, int, int]]) -> Tensor:
    """Within windows.

    Args:
        qkv: Each (B, patches, heads, dim), in the order of windows.
        groups: As in `Order`; of one window with everything, full attention.

    Returns:
        (B, patches, heads * dim).
    """
    b, _, heads, dim = qkv[0].shape
    found = []
    for first, windows, tokens in groups:
        part = slice(first * PATCHES, (first + windows * tokens) * PATCHES)
        q, k, v = (t[:, part].reshape(b * windows, tokens * PATCHES, heads, dim).transpose(1, 2) for t in qkv)
        found.append(attend(q, k, v).transpose(1, 2).reshape(b, windows * tokens * PATCHES, heads * dim))
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def features(tower: nn.Module, images: Tensor) -> Tensor:
    """Merged tokens (B, tokens, WIDTH) of pictures of one size, uint8 (B, height, width, 3) px."""
    heads, width = tower.config.num_heads, tower.config.hidden_size
    rows, cols = images.shape[1] // TOKEN, images.shape[2] // TOKEN
    order = order_of(rows, cols, width // heads, images.device)
    flat = patches_of(images)[:, order.tokens].reshape(len(images), -1, 3 * PATCH * PATCH)
    weight = tower.patch_embed.proj.weight
    x = F.linear(flat, weight.sum(2).flatten(1)).float()  # both frames of a still picture are the same
    full = [(0, 1, rows * cols)]
    for number, block in enumerate(tower.blocks):
        qkv = block.attn.qkv(rms(x, block.norm1)).view(*x.shape[:2], 3, heads, -1)
        turned = rotated(qkv[:, :, :2], order.cos[:, None], order.sin[:, None]).to(qkv.dtype)
        groups = full if number in tower.config.fullatt_block_indexes else order.groups
        x = x + block.attn.proj(attention((turned[:, :, 0], turned[:, :, 1], qkv[:, :, 2]), groups))
        mlp, y = block.mlp, rms(x, block.norm2)
        x = x + mlp.down_proj(F.silu(mlp.gate_proj(y)) * mlp.up_proj(y))
    merged = rms(x, tower.merger.ln_q).reshape(len(images), rows * cols, -1)
    return tower.merger.mlp(merged).index_select(1, order.back)  # whose gradient needs no sorting


class Heads(nn.ModuleDict):
    """Linear read-outs of every token."""

    def __init__(self) -> None:
        super().__init__({name: nn.Linear(WIDTH, classes) for name, classes in HEADS.items()})


@lru_cache(maxsize=64)
def class_weights(name: str, device: torch.device) -> Tensor:
    """Background is a tenth of a thing."""
    weights = torch.ones(HEADS[name], device=device)
    if name in BACKGROUND:
        weights[BACKGROUND[name]] = 0.1
    return weights


def read_out(heads: Heads, tokens: Tensor, labels: dict[str, Tensor], measure: bool) -> tuple[Tensor, dict[str, float]]:
    """The weighted loss of all read-outs, and how often the most likely class is right where that is to be measured.

    Args:
        heads: The read-outs.
        tokens: What `features` returned.
        labels: Of `token_labels`.
        measure: Whether to wait for the device for the shares.
    """
    loss, now = torch.zeros((), device=tokens.device), {}
    for name, head in heads.items():
        logits, target = head(tokens).float().flatten(0, 1), labels[name].flatten()
        weights = class_weights(name, tokens.device)
        summed = F.cross_entropy(logits, target, weights, ignore_index=IGNORE, reduction="sum")
        total = weights[target.clamp(min=0)] * (target != IGNORE)
        loss = loss + WEIGHTS[name] * summed / total.sum().clamp(min=1)  # nothing asked is no loss, not nan
        if measure:
            known = target != BACKGROUND.get(name, IGNORE)
            right = (logits.argmax(-1) == target) & known
            now[f"token {name}"] = right.sum().item() / max(1, known.sum().item())
    return loss, now
