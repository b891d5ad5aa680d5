"""Make a call with images shorter: read its prompt, choose tokens, project those that stay, rewrite the arguments."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from globalcom2.core.groups import Group, on_host
from globalcom2.errors import InputError
from globalcom2.hf.active import Short
from globalcom2.hf.beams import SHORTENED
from globalcom2.hf.cache import Memory, memory_of_call, memory_with_axes
from globalcom2.hf.logits import places_of_logits
from globalcom2.hf.merging import kept_features
from globalcom2.hf.packed import block_mask, caches, check_padding, cut_lengths
from globalcom2.hf.positions import original_positions
from globalcom2.hf.prompt import ALIGNED, ShortPrompt, shorten
from globalcom2.hf.report import Clock, ImageReport, best_first, raster
from globalcom2.hf.saliency import Encoded
from globalcom2.hf.visuals import Visuals, entries_of, wanted_tokens

LABELS_ON_IMAGES = (
    "globalcom2: labels on visual tokens are left out of the loss, since most of these tokens are dropped. A trainer that "
    "counts them divides the loss by too much. Set them to -100 in the collator."
)


@dataclass(frozen=True)
class Given:
    """The prompts of a call as its caller knows them, on the host, with what a cache holds before them."""

    ids: Tensor
    """(batch, length); -1 where only the cache knows."""
    mask: Tensor | None
    positions: Tensor | None
    """(batch or 1, length), or (axes, batch, length) where `with_axes` made them."""
    cached: int
    """The first so many places are in a cache."""
    unknown: int
    """`cached` where the call does not repeat their ids (a direct call), else 0."""

    @property
    def length(self) -> int:
        """Length of the prompts."""
        return self.ids.shape[1]


def read_prompt(call: dict[str, Any], *, direct: bool, cached: int) -> Given:
    """Copy what the shortened prompt follows from to the host, before the tower has work.

    Raises:
        InputError: A mask or positions of another length than the ids.
    """
    ids, mask, positions = call["input_ids"], call.get("attention_mask"), call.get("position_ids")
    unknown = cached if direct else 0
    shape = (len(ids), unknown + ids.shape[1])
    if mask is not None and tuple(mask.shape) != shape:
        raise InputError(
            f"attention_mask must have the shape of input_ids {shape}, got {tuple(mask.shape)}."
            if not unknown
            else f"attention_mask must cover the cache and the new tokens, {shape}, got {tuple(mask.shape)}."
        )
    if positions is not None and (positions.ndim != 2 or positions.shape[1] != ids.shape[1]):
        raise InputError(
            f"position_ids must be (batch, {ids.shape[1]}), as long as input_ids, got {tuple(positions.shape)}."
        )
    own: Tensor = ids.cpu()
    own_mask, own_positions = (None if x is None else x.cpu() for x in (mask, positions))
    if unknown:
        own = torch.cat([own.new_full((len(ids), unknown), -1), own], 1)
        if own_positions is not None:
            present = own.new_ones(len(ids), unknown) if own_mask is None else own_mask[:, :unknown]
            own_positions = torch.cat([original_positions(present), own_positions.expand(len(ids), -1)], 1)
    return Given(own, own_mask, own_positions, cached, unknown)


@dataclass(frozen=True)
class Chosen:
    """Which tokens of a call stay."""

    entries: list[list[ImageReport]]
    """Of each modality, per image or video."""
    prompt: ShortPrompt
    places: list[list[Tensor]]
    """Of each modality, per image or video, the places of its run that stay, in the order in which they are read."""


def choose(
    given: Given, found: list[Visuals], groups: list[list[Group]], thumbnail_order: str, pad_token_id: int
) -> Chosen:
    """From masks on the device to the short prompt on the host."""
    on_host([group for own in groups for group in own])
    entries = [entries_of(own, visuals, given.mask) for own, visuals in zip(groups, found, strict=True)]
    kept = [torch.cat([entry.kept for entry in own]) for own in entries]
    prompt = shorten(given.ids, given.mask, wanted_tokens(given.ids, found, kept), pad_token_id, given.cached)
    order = best_first if thumbnail_order == "score" else raster
    return Chosen(entries, prompt, [[order(entry) for entry in own] for own in entries])


def project(base: Any, encoded: list[Encoded], groups: list[list[Group]], chosen: Chosen) -> dict[str, Any]:
    """The encoder's output by modality, as the model's forward takes it, with the tokens that stay."""
    outputs = {}
    for own, members, places in zip(encoded, groups, chosen.places, strict=True):
        adapter = own.visuals.adapter
        features = kept_features(base, own, members, places)
        outputs[adapter.modality] = output = adapter.output(features, own.output)
        pooled = getattr(output, "pooler_output", None)
        if isinstance(pooled, list):  # one tensor per image, for callers who look at them: the forward joins them
            output.pooler_output = list(torch.cat(pooled).split([len(kept) for kept in places]))
    return outputs


@dataclass(frozen=True)
class Rewriting:
    """How the arguments of a call are rewritten."""

    model: Any
    original: bool
    """Whether tokens keep the positions of the full prompt."""
    direct: bool
    """Whether it is a call of `forward`, which numbers tokens without looking at the mask."""
    full_logits: bool
    """Whether logits go back to all places of the caller's prompt."""
    clock: Clock


def rewrite(
    call: dict[str, Any], given: Given, found: list[Visuals], chosen: Chosen, outputs: dict[str, Any], how: Rewriting
) -> Short:
    """The call with the short prompt and the encoder's output in place of pixels."""
    read = {name for visuals in found for name in visuals.arguments}
    new = {name: value for name, value in call.items() if name not in read}
    device = call["input_ids"].device
    remembered = _memory(given, chosen.prompt, how.original)
    own = chosen.prompt.after(given.unknown)
    if given.cached:
        check_padding(how.model, chosen.prompt)
    _cut_labels(new, own, found, given)
    cut_lengths(new, own)
    restore = None
    if how.direct:
        length = given.length - given.unknown
        takes = "logits_to_keep" in inspect.signature(type(how.model).forward).parameters
        to_keep = int(call.get("logits_to_keep") or 0) if takes else 0
        restore = places_of_logits(own, length, to_keep, how.full_logits)
        if restore is not None and to_keep:
            new["logits_to_keep"] = restore.wanted
    memory = remembered.to(device)
    prompt = memory.prompt.after(given.unknown)
    for name, fill in ALIGNED.items():
        if new.get(name) is not None and name != "labels":
            new[name] = prompt.gather(new[name], fill)
    new["input_ids"], new["attention_mask"] = prompt.input_ids, memory.prompt.attention_mask
    new.pop("position_ids", None)
    if how.original or how.direct or given.positions is not None:
        new["position_ids"] = memory.position_ids[..., given.unknown :]
    if given.mask is None and how.original:  # without a mask, transformers takes gaps in positions for packed samples
        new["attention_mask"] = memory.attention_mask
        if remembered.samples is not None:
            new["attention_mask"] = block_mask(how.model, remembered.samples, remembered.prompt.real).to(device)
    elif remembered.samples is not None and not caches(how.model, call):  # positions alone tell samples apart
        new["attention_mask"] = None
    for output in outputs.values():
        setattr(output, SHORTENED, True)
    new["mm_encoder_outputs"] = outputs
    return Short(new, prompt, memory, how.clock, restore)


def _memory(given: Given, prompt: ShortPrompt, original: bool) -> Memory:
    if given.positions is not None and given.positions.ndim == 3:
        return memory_with_axes(prompt, given.positions, given.mask, given.length, given.unknown)
    return memory_of_call(prompt, given.positions, given.mask, given.length, original, unknown=given.unknown)


def _cut_labels(new: dict[str, Any], prompt: ShortPrompt, found: list[Visuals], given: Given) -> None:
    """Cut `labels` and `shift_labels`, and leave visual tokens out of the loss."""
    placeholder = torch.stack([visuals.placeholder for visuals in found]).any(0)[:, given.unknown :]
    counts: set[int] = set()
    left_out = 0
    for name in ("labels", "shift_labels"):
        labels = new.get(name)
        if labels is None:
            continue
        shifted = name == "shift_labels"
        visual = torch.nn.functional.pad(placeholder[:, 1:], (0, 1)) if shifted else placeholder
        own = labels.cpu()
        counts.add(int((own != -100).sum()))
        if not shifted:  # nothing predicts it; in a row that gets padding on its left, padding would
            own = torch.nn.functional.pad(own[:, 1:], (1, 0), value=-100)
        counts.add(int((own != -100).sum()))
        left_out = int(((own != -100) & visual).sum())
        own = own.masked_fill(visual, -100)
        new[name] = (prompt.gather_shifted(own, -100) if shifted else prompt.gather(own, -100)).to(labels.device)
    if left_out:
        warnings.warn(LABELS_ON_IMAGES, stacklevel=2)
        counted = new.get("num_items_in_batch")
        # A trainer's count of this call alone can be put right; that of several batches or devices cannot.
        if counted is not None and int(counted) in counts:
            new["num_items_in_batch"] = counted - left_out
