"""A process's memory while something is measured: its peak, and freed memory kept for the next call."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


class PeakMemory:
    """Peak of the device's allocated memory on CUDA, of the process's resident memory on Linux CPUs; else unknown."""

    STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def __init__(self, device: torch.device):
        self.device = device
        self.known = device.type == "cuda"
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            try:
                self.RESET.write_text("5")
                self.known = True
            except OSError:
                self.known = False

    def bytes(self) -> int | None:
        """The peak since construction, in bytes."""
        if not self.known:
            return None
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        lines = self.STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


# Parameters of glibc's mallopt (malloc.h).
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
NO_LIMIT = 2**31 - 1
# Where glibc ends up by itself once large blocks were freed, and its limit on mapped blocks.
USUAL = {MMAP_THRESHOLD: 32 * 2**20, TRIM_THRESHOLD: 64 * 2**20, MMAP_MAX: 65536}


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside the block, memory that is freed stays with the process, as with a server's tuned allocator or on CUDA.

    Otherwise glibc gives large blocks back, and the system clears every page anew for the next one: a sixth of a small
    tower's time, which hides how long a call computes. Does nothing where the C library is not glibc.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(MMAP_MAX, 0)
    library.mallopt(TRIM_THRESHOLD, NO_LIMIT)
    try:
        yield
    finally:
        for parameter, value in USUAL.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)
