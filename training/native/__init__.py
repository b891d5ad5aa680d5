"""How the native mini is made: an ordinary Qwen2.5-VL of 5.6 million weights over the first mini's drawn pictures.

The modules of `../mini` (scenes, questions, batches, ...) are imported as they are.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "mini"))
