"""What the vision side of a call costs, family by family: tower and projector, in closed form.

Tests compare every formula with torch's own counter. A family without one is refused with the reason.
"""

from __future__ import annotations

from typing import Any

from globalcom2.adapters.families import load_adapter
from globalcom2.core.layout import Layout
from globalcom2.errors import UnsupportedModelError
from globalcom2.lab.costs import tower_flops

PLAIN = ("llava_next", "llava_next_video", "llava_onevision")


def tower_flops_of(config: Any, layout: Layout) -> int:
    """Operations of the vision tower on all views of one image.

    Raises:
        UnsupportedModelError: No formula is known for this family.
    """
    if config.model_type not in PLAIN:
        raise UnsupportedModelError(f"costs must be counted for a known tower, got {config.model_type}.")
    adapter = load_adapter(config.model_type)
    return tower_flops(config.vision_config, layout.views, adapter.cls_index is not None)
