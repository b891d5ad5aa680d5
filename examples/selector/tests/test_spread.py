"""The selector is found, keeps to the budget, and spreads what it keeps."""

import torch

from globalcom2 import Views, list_methods, select


def test_the_method_is_found():
    """Its entry point works."""
    assert "spread" in list_methods()


def test_every_block_keeps_its_best_token_first():
    """A quarter of the tokens is one for every block of four."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 64, generator=generator)
    views = Views(scores, grid=(2, 2), thumbnail_scores=torch.randn(64, generator=generator))
    keep = select(views, 0.25, "spread")
    assert int(keep.thumbnail.sum() + keep.crops.sum()) == 80  # a quarter of 5 x 64
    blocks = keep.crops.view(4, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).flatten(3)
    assert (blocks.sum(-1) == 1).all()  # 16 tokens for 16 blocks
    best = scores.view(4, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).flatten(3).argmax(-1)
    assert (blocks.int().argmax(-1) == best).all()
