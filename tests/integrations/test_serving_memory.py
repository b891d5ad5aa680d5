"""What an engine remembers of images, so that each keeps the same places whenever it is encoded."""

import pytest
import torch

from globalcom2.integrations.vllm import memory
from globalcom2.integrations.vllm.memory import Memory, digest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_digests_tell_pixels_apart(dtype, monkeypatch):
    pixels = (torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 200).to(dtype)
    flat = pixels.flatten()
    others = [pixels.flip(0), pixels.mT, pixels[:2], torch.zeros_like(pixels), torch.ones_like(pixels)]
    for place in range(len(flat)):  # one value, by the least that can be
        changed = flat.clone()
        changed.view(memory.WORDS[changed.element_size()])[place] ^= 1
        others.append(changed)
    for first, second in ((0, 1), (5, 500)):
        swapped = flat.clone()
        swapped[[first, second]] = flat[[second, first]]
        others.append(swapped)
    whole = int(digest(pixels))
    found = [int(digest(own)) for own in others]
    assert len({whole, *found}) == 1 + len(others)
    assert int(digest(list(pixels))) == whole  # views of one size or of several
    monkeypatch.setattr(memory, "PIECE", 7)
    assert int(digest(pixels.clone())) == whole
    assert int(digest(torch.stack([pixels, pixels])[1])) == whole  # wherever it lies in a batch


def test_the_first_set_stays_until_it_is_forgotten():
    generator = torch.Generator().manual_seed(0)
    sets = [torch.rand(77, generator=generator) < 0.3 for _ in range(4)]
    kept = Memory(images=2)
    assert torch.equal(kept.settled(("a", 0.1), sets[0]), sets[0])
    assert torch.equal(kept.settled(("a", 0.1), sets[1]), sets[0])
    assert torch.equal(kept.settled(("a", 0.2), sets[1]), sets[1])
    assert torch.equal(kept.settled(("a", 0.1), sets[2]), sets[0])  # asked for last: the other one goes
    assert torch.equal(kept.settled(("b", 0.1), sets[2]), sets[2])
    assert torch.equal(kept.settled(("a", 0.1), sets[3]), sets[0])
    assert torch.equal(kept.settled(("a", 0.2), sets[3]), sets[3])
    kept.clear()
    assert torch.equal(kept.settled(("a", 0.1), sets[3]), sets[3])
