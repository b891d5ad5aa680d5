"""Step 3: write the model and its processor where `load_mini` finds them, and draw the demo picture.

python export.py DECODER.pt [ANOTHER.pt ...] ../../src/globalcom2/mini

Of several, the mean is written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import load_file, save_file

from build import averaged
from build import model as build_model
from build import processor as build_processor
from scenes import HELD_OUT_PHOTOS, scene

LIMIT = 20 * 2**20
# Colours, shapes and numbers of a held-out seed on the cat photograph, which no training picture shows.
DEMO_SEED, DEMO_PHOTO, DEMO_GRID = "demo-7", HELD_OUT_PHOTOS[0], (3, 3)
DEMO_TAGS = (5, 5)


def name_as_published(file: Path) -> None:
    """Give the tower's weights the names of published checkpoints, which vLLM reads too; transformers 5 saves others."""
    weights = load_file(file)
    named = {name.replace("vision_tower.", "vision_tower.vision_model.", 1): weight for name, weight in weights.items()}
    save_file(named, file, {"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("decoders", type=Path, nargs="+")
    parser.add_argument("package", type=Path)
    args = parser.parse_args()
    processor = build_processor()
    tokens = processor.tokenizer
    model = build_model(tokens)
    model.load_state_dict(averaged(args.decoders)["model"])
    model = model.half()
    model.generation_config.eos_token_id = tokens.eos_token_id
    model.generation_config.pad_token_id = tokens.pad_token_id
    model.generation_config.bos_token_id = tokens.bos_token_id
    folder = args.package / "model"
    model.save_pretrained(folder)
    name_as_published(folder / "model.safetensors")
    processor.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    size = sum(file.stat().st_size for file in folder.iterdir())
    if size > LIMIT:
        raise SystemExit(f"{folder} has {size:,} bytes, more than {LIMIT:,}: make the model smaller.")
    demo = scene(
        DEMO_SEED, grids=(DEMO_GRID,), tags=DEMO_TAGS, photos=(DEMO_PHOTO,), backgrounds="photo", documents=0.0
    )
    demo.image.save(args.package / "demo.png", optimize=True)
    print(f"{size:,} bytes in {folder}; demo shows {', '.join(f'{t.name} {t.number}' for t in demo.tags)}")


if __name__ == "__main__":
    main()
