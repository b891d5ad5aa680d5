"""Processes that draw training steps, and their way to the device.

Workers write the arrays of a step into a slot of shared memory (anonymous, so that no size of /dev/shm matters). A thread
copies one slot at a time to the device and frees it. Where drawing is slower than training, recent steps are seen again.
"""

from __future__ import annotations

import mmap
import multiprocessing
import queue
import random
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from native.steps import Arrays

SLOT = 64 * 2**20  # bytes that a step may have; only what is written takes memory
ALIGNED = 64
ON_HOST = ("size", "guided_of")  # small numbers that shapes depend on
AGAIN_AMONG = 40  # steps are seen again only once so many are there to choose from
RECENT = 400
PATIENCE = 90  # seconds without a step after which something is wrong
Layout = list[tuple[str, str, tuple[int, ...], int]]  # name, dtype, shape, offset


class Batch(NamedTuple):
    """A step on the device."""

    arrays: dict[str, Tensor]
    numbers: dict[str, list[int]]
    """What stays on the host."""


def packed(arrays: Arrays, slot: mmap.mmap) -> tuple[Layout, int]:
    """Writes the arrays one after the other; their places, and the bytes in all."""
    layout, offset = [], 0
    for name, array in arrays.items():
        if offset + array.nbytes > len(slot):
            raise ValueError(f"a step must have at most {len(slot):,} bytes, got more at {name}: draw fewer pictures")
        target = np.frombuffer(slot, array.dtype, array.size, offset).reshape(array.shape)
        target[...] = array
        layout.append((name, array.dtype.str, array.shape, offset))
        offset += -(-array.nbytes // ALIGNED) * ALIGNED
    return layout, offset


def unpacked(layout: Layout, host: np.ndarray, there: Tensor) -> Batch:
    """Views of bytes: on the host those of ON_HOST, on the device all others."""
    arrays, numbers = {}, {}
    for name, kind, shape, offset in layout:
        dtype = np.dtype(kind)
        size = int(np.prod(shape)) * dtype.itemsize
        if name in ON_HOST:
            numbers[name] = host[offset : offset + size].view(dtype).tolist()
        else:
            like = torch.from_numpy(np.empty(0, dtype)).dtype
            arrays[name] = there[offset : offset + size].view(like).view(shape)
    return Batch(arrays, numbers)


def draw_forever(jobs, current, slots, free, done, seed: str) -> None:
    """A worker: draws steps of the current job, each from a seed of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    names, count = list(jobs), 0
    while True:
        slot = free.get()
        job = current.value
        try:
            layout, used = packed(jobs[names[job]](f"{seed}-{names[job]}-{count}"), slots[slot])
            done.put((slot, job, layout, used))
        except Exception:
            done.put((slot, job, traceback.format_exc(), 0))
        count += 1


class Feed:
    """Steps of one job after the other, on the device.

    Args:
        jobs: What draws a step from a seed, by name.
        workers: Processes. Make the feed before anything touches the GPU.
        seed: Of the pictures; of a run that goes on, another one.
        device: Where steps go.
        again: How often a step may be seen again where drawing is slower than training.
    """

    def __init__(self, jobs: Mapping[str, Callable[[str], Arrays]], workers: int, seed: str, device: str, again: int):
        forking = multiprocessing.get_context("fork")
        self.names, self.device, self.again = list(jobs), torch.device(device), again
        self.slots = [mmap.mmap(-1, SLOT) for _ in range(workers + 8)]
        self.free, self.done, self.current = forking.SimpleQueue(), forking.SimpleQueue(), forking.Value("i", 0)
        for slot in range(len(self.slots)):
            self.free.put(slot)
        shared = (dict(jobs), self.current, self.slots, self.free, self.done)
        self.workers = [
            forking.Process(target=draw_forever, args=(*shared, f"{seed}-{n}"), daemon=True) for n in range(workers)
        ]
        for worker in self.workers:
            worker.start()
        self.ready: queue.Queue = queue.Queue(maxsize=8)
        self.recent: deque[list] = deque(maxlen=RECENT)
        self.rng = random.Random(0)
        self.waited, self.fresh, self.seen_again = 0.0, 0, 0
        self.open = True

    def start(self) -> None:
        """Begins to copy; the GPU may be touched from here on."""
        threading.Thread(target=self._carry, daemon=True).start()

    def choose(self, job: str) -> None:
        """From now on steps of this job; what was drawn for another is dropped."""
        self.current.value = self.names.index(job)
        self.recent.clear()

    def next(self) -> Batch:
        """A new step, or where none is ready a recent one that was not seen too often."""
        wanted = self.current.value
        while True:
            begin = time.perf_counter()
            try:
                job, batch = self.ready.get_nowait()
            except queue.Empty:
                old = self._old()
                if old is not None:
                    self.seen_again += 1
                    return old
                job, batch = self.ready.get(timeout=PATIENCE)
            self.waited += time.perf_counter() - begin
            if isinstance(batch, str):
                raise RuntimeError(batch)
            if job == wanted:
                self.fresh += 1
                self.recent.append([0, batch])
                return batch

    def _old(self) -> Batch | None:
        if len(self.recent) < AGAIN_AMONG:
            return None
        # Not the newest: what follows at once teaches little.
        entry = self.recent[self.rng.randrange(len(self.recent) - AGAIN_AMONG // 2)]
        if entry[0] >= self.again:
            return None
        entry[0] += 1
        return entry[1]

    def _carry(self) -> None:
        try:
            self._copy_forever()
        except Exception:
            self.ready.put((self.current.value, traceback.format_exc()))

    def _copy_forever(self) -> None:
        on_gpu = self.device.type == "cuda"
        staged = torch.empty(SLOT, dtype=torch.uint8, pin_memory=True) if on_gpu else None
        stream = torch.cuda.Stream() if on_gpu else None
        views = [np.frombuffer(slot, np.uint8) for slot in self.slots]
        while self.open:
            slot, job, layout, used = self.done.get()
            if isinstance(layout, str):
                self.ready.put((job, layout))
            elif job == self.current.value:
                host = views[slot][:used]
                there = self._on_gpu(host, staged, stream) if on_gpu else torch.from_numpy(host.copy())
                self.ready.put((job, unpacked(layout, host, there)))
            self.free.put(slot)

    def _on_gpu(self, host: np.ndarray, staged: Tensor, stream) -> Tensor:
        """A copy on the device that is complete when this returns."""
        staged[: len(host)].copy_(torch.from_numpy(host))
        with torch.cuda.stream(stream):
            there = torch.empty(len(host), dtype=torch.uint8, device=self.device)
            there.copy_(staged[: len(host)], non_blocking=True)
        stream.synchronize()
        there.record_stream(torch.cuda.default_stream(self.device))
        return there

    def close(self) -> None:
        self.open = False
        for worker in self.workers:
            worker.terminate()
