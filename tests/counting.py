"""What tests of operation counts share."""

import pytest
import transformers
from packaging.version import Version

LLAVA = ("llava_next", "llava_next_video", "llava_onevision")


def skip_before_5_24(family: str) -> None:
    """Skip where transformers computes a family otherwise than its formula says."""
    if family not in LLAVA and Version(transformers.__version__) < Version("5.24"):
        pytest.skip(
            f"formulas of {family} are those of transformers 5.24; earlier ones may pad and make logits otherwise"
        )
