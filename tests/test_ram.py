"""What is measured of a process's memory, and that freed memory is kept in the block and given back after it."""

import resource
from pathlib import Path

import pytest
import torch

from globalcom2 import ram


def test_peak_memory_sees_a_large_tensor():
    memory = ram.PeakMemory(torch.device("cpu"))
    before = memory.bytes()
    if before is None:
        pytest.skip("this kernel does not let a process reset its peak")
    torch.ones(30_000_000)  # 120 MB, freed at once
    assert memory.bytes() - before > 60e6


def faults(times=5):
    """Pages that the system gave to so many tensors of 120 MB, one after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(30_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_freed_memory_is_kept_in_the_block_and_given_back_after_it():
    if faults() < 100:
        pytest.skip("this C library keeps freed memory by itself")
    outside = faults()
    with ram.freed_memory_kept():
        faults(1)
        inside, kept = faults(), resident()
    assert inside < outside / 10
    assert resident() < kept - 60e6
