"""Draws the evaluation set (held-out photographs) or the tuning set (tuning photographs), as one parquet file.

    python evaluation_set.py evaluation ../../src/globalcom2/mini/evaluation.parquet
    python evaluation_set.py tuning ../../runs/tuning.parquet

Neither seeds nor photographs occur in training. One row per question, in the format of Hugging Face datasets; pictures
are JPEGs, stored once per picture.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from questions import Asked, question
from scenes import HELD_OUT_PHOTOS, TUNING_PHOTOS, Scene, scene

SETS = {"evaluation": HELD_OUT_PHOTOS, "tuning": TUNING_PHOTOS}
PICTURES, QUESTIONS, QUALITY = 600, 8, 88
TAGS = ("read", "read", "exists", "exists", "count", "color", "left", "largest")
DOCUMENT = ("document", "document", "document", "document", "document", "exists", "exists", "exists")
ATTEMPTS = 30
LIMIT = 15 * 2**20


def questions_about(rng: random.Random, shown: Scene) -> list[Asked] | None:
    """Eight different questions, or None where the picture has not enough to ask."""
    found: dict[str, Asked] = {}
    for kind in DOCUMENT if shown.lines else TAGS:
        # What this picture cannot be asked (left, with one tag) becomes another reading, or else an existence.
        for instead in (kind, "document" if shown.lines else "read", "exists"):
            drawn = (question(rng, shown, instead) for _ in range(ATTEMPTS))
            new = next((asked for asked in drawn if asked is not None and asked[1] not in found), None)
            if new is not None:
                found[new[1]] = new
                break
    return list(found.values()) if len(found) == QUESTIONS else None


def features() -> pa.Schema:
    columns = {"picture": "int32", "kind": "string", "question": "string", "answer": "string"}
    described = {name: {"dtype": kind, "_type": "Value"} for name, kind in columns.items()}
    described = {"picture": described.pop("picture"), "image": {"_type": "Image"}, **described}
    schema = pa.schema(
        [
            ("picture", pa.int32()),
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("kind", pa.string()),
            ("question", pa.string()),
            ("answer", pa.string()),
        ]
    )
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": described}})})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=SETS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    args = parser.parse_args()
    rows, number, tried = [], 0, 0
    while number < args.pictures:
        shown = scene(f"{args.name}-{tried}", photos=SETS[args.name])
        asked = questions_about(random.Random(f"{args.name}-questions-{tried}"), shown)
        tried += 1
        if asked is None:
            continue
        buffer = io.BytesIO()
        shown.image.save(buffer, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
        image = {"bytes": buffer.getvalue(), "path": f"{number:04}.jpg"}
        rows += [
            {"picture": number, "image": image, "kind": kind, "question": text, "answer": answer}
            for kind, text, answer in asked
        ]
        number += 1
    table = pa.Table.from_pylist(rows, schema=features())
    # One row group with one dictionary: a picture's bytes are stored once for its eight rows.
    parquet.write_table(table, args.out, row_group_size=len(rows), dictionary_pagesize_limit=64 * 2**20)
    size = args.out.stat().st_size
    print(f"{args.out}: {len(rows)} questions, {size:,} bytes, {dict(Counter(row['kind'] for row in rows))}")
    if size > LIMIT:
        raise SystemExit(f"{args.out} must have at most {LIMIT:,} bytes, got {size:,}: lower QUALITY.")


if __name__ == "__main__":
    main()
