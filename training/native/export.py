"""Writes the model and its processor where transformers finds them, from what train.py wrote.

    python -m native.export OUT/together.safetensors [ANOTHER.safetensors ...] FOLDER       in the folder training

Of several, the mean is written; one counts as often as it is named.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from native.build import model as build_model
from native.build import processor as build_processor

LIMIT = 12 * 2**20


def averaged(files: list[Path]) -> dict[str, torch.Tensor]:
    """Mean of the weights, in float32."""
    loaded = [load_file(file) for file in files]
    return {name: torch.stack([weights[name].float() for weights in loaded]).mean(0) for name in loaded[0]}


def name_stock_classes(folder: Path) -> None:
    """Names transformers' own processor, and the settings for videos that it insists on, engines alike."""
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    images = settings["image_processor"]
    settings["processor_class"] = "Qwen2_5_VLProcessor"
    names = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std", "size")
    settings["video_processor"] = {"video_processor_type": "Qwen2VLVideoProcessor", **{n: images[n] for n in names}}
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"processor_class": "Qwen2_5_VLProcessor"}
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    model = build_model()
    model.load_state_dict(averaged(args.weights))
    model.half().save_pretrained(args.folder)
    build_processor().save_pretrained(args.folder)
    name_stock_classes(args.folder)
    for file in args.folder.iterdir():
        file.chmod(0o644)
    size = sum(file.stat().st_size for file in args.folder.iterdir())
    if size > LIMIT:
        raise SystemExit(f"{args.folder} must have at most {LIMIT:,} bytes, got {size:,}: make the model smaller.")
    print(f"{size:,} bytes in {args.folder}")


if __name__ == "__main__":
    main()
