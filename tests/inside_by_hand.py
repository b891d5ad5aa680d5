"""FastV and PyramidDrop by hand: one row at a time, no padding, no cache, the decoder's layers called one after another."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from independent import cut_embeddings


@dataclass
class ByHand:
    """One row, run through the language model with tokens removed between layers."""

    logits: torch.Tensor
    """(left, vocabulary)."""
    places: torch.Tensor
    """int (left,): places of what is left, in the row's own prompt."""
    sets: list
    """Per drop, the places of visual tokens that are left."""


def row_of(model, inputs, row, keep):
    """(embeddings (1, n, dim), visual bool (n,)) of a row of the batch, with the visual tokens that `keep` keeps."""
    image, kept = inputs["input_ids"] == model.config.image_token_id, inputs["attention_mask"].bool()
    kept[image] = keep
    embeds, mask, _ = cut_embeddings(model, inputs, keep)
    return embeds[row][mask[row].bool()][None], image[row][kept[row]]


def attention_of_last(layer, hidden, cos, sin, last):
    """Attention that place `last` pays, mean over heads, (places,)."""
    own = layer.self_attn
    normed = layer.input_layernorm(hidden)
    query, key = own.q_proj(normed)[0], own.k_proj(normed)[0]
    query, key = (x.unflatten(-1, (-1, own.head_dim)) for x in (query, key))
    if hasattr(own, "q_norm"):
        query, key = own.q_norm(query), own.k_norm(key)

    def turned(x):
        half = own.head_dim // 2
        rotated = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * cos[0][:, None] + rotated * sin[0][:, None]

    query, key = turned(query)[last], turned(key)
    weights = []
    for head in range(len(query)):
        mine = key[: last + 1, head * key.shape[1] // len(query)]
        weights.append((mine @ query[head] * own.head_dim**-0.5).softmax(0))
    return torch.stack(weights).mean(0)


@torch.no_grad()
def run_by_hand(model, embeds, visual, drops, share, last=None):
    """The language model on one row; after layer k (from 1) of `drops`, a share of its visual tokens stays."""
    decoder = model.get_decoder()
    count = embeds.shape[1]
    last = count - 1 if last is None else last
    places, hidden, sets = torch.arange(count), embeds, []
    for number, layer in enumerate(decoder.layers, 1):
        length = hidden.shape[1]
        cos, sin = decoder.rotary_emb(hidden, places[None])
        mask = torch.full((length, length), torch.finfo(hidden.dtype).min).triu(1)[None, None]
        weights = None
        if number in drops:
            weights = attention_of_last(layer, hidden, cos, sin, int((places == last).nonzero()))
        hidden = layer(hidden, attention_mask=mask, position_ids=places[None], position_embeddings=(cos, sin))
        if weights is not None:
            mine = [i for i in range(length) if visual[places[i]]]
            best = sorted(mine, key=lambda i: -float(weights[i]))[: int(share * len(mine) + 0.5)]
            stay = [i for i in range(length) if i not in set(mine).difference(best)]
            hidden, places = hidden[:, stay], places[stay]
            sets.append(sorted(int(p) for p in places if visual[p]))
    return ByHand(model.lm_head(decoder.norm(hidden))[0], places, sets)


def greedy_by_hand(model, embeds, visual, drops, share, new, suppressed=()):
    """Tokens of greedy decoding, each from a run over everything so far; the prompt's last token goes on deciding."""
    last, tokens = embeds.shape[1] - 1, []
    for _ in range(new):
        logits = run_by_hand(model, embeds, visual, drops, share, last).logits[-1].clone()
        logits[list(suppressed)] = float("-inf")
        tokens.append(int(logits.argmax()))
        embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([[tokens[-1]]]))], 1)
        visual = torch.cat([visual, torch.tensor([False])])
    return tokens
