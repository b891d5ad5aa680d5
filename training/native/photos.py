"""Saves the photographs that pictures are drawn over, for a machine that may have other packages.

python -m native.photos ../runs/native-photos       in the folder training, then train.py --photos ../runs/native-photos
"""

import sys
from pathlib import Path

from native.pictures import save_photos

if __name__ == "__main__":
    save_photos(Path(sys.argv[1]))
