"""What a training step learns, and the loop that does it for a given time."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from native.asking import KINDS
from native.decoder import GUIDE_WEIGHT, Readers, answer_loss, answered, guidance, knowledge, read, shares
from native.feed import Batch, Feed
from native.labels import token_labels
from native.tower import Heads, features, read_out

MEASURED = 2.0  # seconds between two measurements
SAVED = 40.0  # seconds between two checkpoints
TOWER_WEIGHT = 0.5  # of the tower's own labels, where tower and decoder learn together
TOWER_RATE = 0.5  # of the decoder's learning rate, then
AHEAD = 2  # steps that the host may be ahead of the device


class Parts(NamedTuple):
    """All that learns."""

    model: nn.Module
    heads: Heads
    readers: Readers

    @property
    def tower(self) -> nn.Module:
        return self.model.model.visual


class Stage(NamedTuple):
    """One stretch of training."""

    name: str
    seconds: float
    rate: float
    """Peak learning rate."""
    warm: float
    """Share of the time until the peak."""

    @property
    def job(self) -> str:
        return "tower" if self.name == "tower" else "decoder"

    def rate_at(self, part: float) -> float:
        """One cycle over the time, so that it ends on time however fast the machine is."""
        if part < self.warm:
            return self.rate * (0.04 + 0.96 * part / self.warm)
        return self.rate * 0.5 * (1 + math.cos(math.pi * min(1.0, (part - self.warm) / (1 - self.warm))))


def groups_of(parts: Parts, stage: str) -> list[tuple[list[nn.Parameter], float]]:
    """What learns in a stage, and at which share of its rate."""
    tower = [*parts.tower.parameters()]
    in_tower = {id(parameter) for parameter in tower}
    others = [parameter for parameter in parts.model.parameters() if id(parameter) not in in_tower]
    heads, readers = [*parts.heads.parameters()], [*parts.readers.parameters()]
    if stage == "tower":
        return [([*tower, *heads], 1.0)]
    reading = [([*others, *readers], 1.0)]
    return reading if stage == "decoder" else [([*tower, *heads], TOWER_RATE), *reading]


class Tally:
    """How often turns of each kind were right: with all tokens, and with a part of them."""

    def __init__(self, device: str):
        self.counts = torch.zeros(2, 2, len(KINDS), dtype=torch.long, device=device)

    def add(self, everything: bool, counts: Tensor) -> None:
        self.counts[int(everything)] += counts

    def take(self) -> dict[str, float]:
        """Shares since the last call, those with a part of the tokens marked by '. Waits for the device."""
        counts = self.counts.tolist()
        self.counts.zero_()
        return {
            kind + mark: counts[row][0][column] / many
            for row, mark in enumerate(("'", ""))
            for column, kind in enumerate(KINDS)
            if (many := counts[row][1][column])
        }


def tower_loss(parts: Parts, batch: Batch, measure: bool) -> tuple[Tensor, dict[str, float]]:
    arrays = batch.arrays
    with torch.autocast(arrays["images"].device.type, torch.bfloat16):
        tokens = features(parts.tower, arrays["images"])
    labels = token_labels(arrays["owners"], arrays["things"], arrays["around"])
    return read_out(parts.heads, tokens.float(), labels, measure)


def decoder_loss(
    parts: Parts, batch: Batch, measure: bool, tally: Tally, together: bool
) -> tuple[Tensor, dict[str, float]]:
    arrays = batch.arrays
    with torch.autocast(arrays["images"].device.type, torch.bfloat16):
        with torch.set_grad_enabled(together):
            tokens = features(parts.tower, arrays["images"])
        found = read(parts.model, batch, tokens)
    answers = answer_loss(found, batch)
    guide, share = guidance(found, batch)
    knows, said = knowledge(parts.readers, found, batch)
    loss, now = answers + GUIDE_WEIGHT * guide + knows, {}
    if together:
        labels = token_labels(arrays["owners"], arrays["things"], arrays["around"])
        own, now = read_out(parts.heads, tokens.float(), labels, measure)
        loss = loss + TOWER_WEIGHT * own
    tally.add(bool(batch.numbers["size"][2]), answered(found, batch))
    if measure:
        losses = {"answers": answers, "guide": guide, "knows": knows, "found": share}
        now |= {name: value.item() for name, value in losses.items()} | shares(said)
    return loss, now


class Loop:
    """Trains one stage.

    Args:
        parts: What learns.
        stage: Which, how long and how fast.
        feed: Where steps come from.
        device: Of the parts.
        report: Called with what was measured.
        save: Called with the seconds spent and the optimizer's state.
    """

    def __init__(self, parts: Parts, stage: Stage, feed: Feed, device: str, report: Callable, save: Callable):
        self.parts, self.stage, self.feed, self.device = parts, stage, feed, device
        self.report, self.save = report, save
        self.groups = groups_of(parts, stage.name)
        self.optimizer = torch.optim.AdamW(
            [{"params": group, "lr": stage.rate * share} for group, share in self.groups],
            betas=(0.9, 0.98),
            weight_decay=0.01,
            fused=True,
        )
        self.tally, self.running, self.queued = Tally(device), {}, deque()
        self.steps, self.pictures, self.spent = 0, 0, 0.0

    def run(self, spent: float = 0.0) -> None:
        """Until the stage's time is over; `spent` seconds of it were used before."""
        self.feed.choose(self.stage.job)
        begin = time.perf_counter()
        measured = saved = begin
        while True:
            now = time.perf_counter()
            self.spent = spent + now - begin
            if self.spent >= self.stage.seconds:
                break
            measure = now - measured >= MEASURED
            self.step(self.stage.rate_at(self.spent / self.stage.seconds), measure)
            if measure:
                self.report(self, time.perf_counter() - measured)
                measured = time.perf_counter()
            if now - saved >= SAVED:
                self.save(self.spent, self.optimizer.state_dict())
                saved = now
        self.report(self, time.perf_counter() - measured)

    def step(self, rate: float, measure: bool) -> None:
        for settings, (_, share) in zip(self.optimizer.param_groups, self.groups, strict=True):
            settings["lr"] = rate * share
        batch = self.feed.next()
        if self.stage.name == "tower":
            loss, now = tower_loss(self.parts, batch, measure)
        else:
            loss, now = decoder_loss(self.parts, batch, measure, self.tally, self.stage.name == "together")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norms = [nn.utils.clip_grad_norm_(group, 1.0) for group, _ in self.groups]
        # The fused kernel leaves everything as it is where a gradient is not finite.
        self.optimizer.found_inf = (~torch.isfinite(torch.stack(norms).sum())).float()
        self.optimizer.step()
        self.steps += 1
        self.pictures += len(batch.arrays["images"])
        if measure:
            now |= {"loss": loss.item(), **self.tally.take()}
            for name, value in now.items():
                if value == value:
                    self.running[name] = 0.7 * self.running.get(name, value) + 0.3 * value
        self.pace()

    def pace(self) -> None:
        """Keeps the host near the device, so that the time of a stage is what the device has worked."""
        if self.device == "cpu":
            return
        event = torch.cuda.Event()
        event.record()
        self.queued.append(event)
        if len(self.queued) > AHEAD:
            self.queued.popleft().synchronize()
