"""What is measured of a process's memory, and that freed memory is kept in the block and given back after it."""

import json
import subprocess
import sys

import pytest
import torch

from globalcom2.lab import memory as ram

# In a process of its own: what other tests freed would serve these tensors.
FAULTS = """
import json, resource
from pathlib import Path
import torch
from globalcom2.lab import memory as ram

def faults(times):  # pages that the system gives to so many tensors of 120 MB, one after the other
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(30_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

faults(1)
outside = faults(5)
with ram.freed_memory_kept():
    faults(20)  # until what is kept fits
    inside, kept = faults(5), resident()
print(json.dumps({"outside": outside, "inside": inside, "given back": kept - resident()}))
"""


def test_peak_memory_sees_a_large_tensor():
    memory = ram.PeakMemory(torch.device("cpu"))
    before = memory.bytes()
    if before is None:
        pytest.skip("this kernel does not let a process reset its peak")
    torch.ones(30_000_000)  # 120 MB, freed at once
    assert memory.bytes() - before > 60e6


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's figures")
def test_freed_memory_is_kept_in_the_block_and_given_back_after_it():
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    seen = json.loads(run.stdout)
    if seen["outside"] < 100:
        pytest.skip("this C library keeps freed memory by itself")
    assert seen["inside"] < seen["outside"] / 10
    assert seen["given back"] > 60e6
