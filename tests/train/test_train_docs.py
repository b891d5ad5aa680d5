"""The blocks of docs/training.md run, one after the other."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/training.md"


def test_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 3
    names = {"__name__": "docs"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {number + 1}", "exec"), names)  # as a reader would paste them
