"""Questions for the native mini over the pictures of the first mini's sets, as a parquet file without pictures.

    python -m native.evaluation_set evaluation ../src/globalcom2/mini/evaluation.parquet OUT.parquet
    python -m native.evaluation_set tuning ../runs/tuning.parquet OUT.parquet                in the folder training

A row per question, with the number of its picture in that set: the set's own eight questions, and where two of a
picture's tags are. Pictures are drawn again, because only their scenes know places; that their questions are still the
set's own is checked. Sides of all pictures are multiples of a token.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from evaluation_set import SETS, questions_about
from native.build import TOKEN
from questions import Asked
from scenes import Scene, Tag, scene

PLACES = 2  # questions for places about a picture with as many tags
INSIDE = 1.0  # px that a centre must be away from its token's border: nearer, nobody can tell
SCHEMA = pa.schema([("picture", pa.int32()), ("kind", pa.string()), ("question", pa.string()), ("answer", pa.string())])


def drawn(name: str) -> Iterator[tuple[str, Scene, list[Asked]]]:
    """Seed, scene and questions of one picture of the set after the other, as ../mini/evaluation_set.py draws them."""
    tried = 0
    while True:
        seed, shown = str(tried), scene(f"{name}-{tried}", photos=SETS[name])
        asked = questions_about(random.Random(f"{name}-questions-{tried}"), shown)
        tried += 1
        if asked is not None:
            yield seed, shown, asked


def is_clear(tag: Tag) -> bool:
    return all(INSIDE <= place % TOKEN <= TOKEN - INSIDE for place in (tag.x, tag.y))


def places(rng: random.Random, shown: Scene) -> list[Asked]:
    """Where some of the tags are: column and row of the token that holds the centre."""
    clear = [tag for tag in shown.tags if is_clear(tag)]
    return [
        ("where", f"where is the {tag.name}?", f"{int(tag.x // TOKEN):02d} {int(tag.y // TOKEN):02d}")
        for tag in rng.sample(clear, min(PLACES, len(clear)))
    ]


def rows_of(name: str, known: list[dict]) -> list[dict]:
    """All rows of the new set.

    Args:
        name: Of the set.
        known: Rows of the first mini's set.
    """
    by_picture: dict[int, list[Asked]] = {}
    for row in known:
        by_picture.setdefault(row["picture"], []).append((row["kind"], row["question"], row["answer"]))
    rows = []
    for (number, own), (seed, shown, asked) in zip(by_picture.items(), drawn(name), strict=False):
        if own != asked or shown.image.width % TOKEN or shown.image.height % TOKEN:
            raise SystemExit(f"picture {number} must be asked {own}, got {asked} where it was drawn again.")
        asked = [*asked, *places(random.Random(f"{name}-places-{seed}"), shown)]
        rows += [{"picture": number, "kind": k, "question": q, "answer": a} for k, q, a in asked]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SETS)
    parser.add_argument("known", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    known = parquet.read_table(args.known, columns=SCHEMA.names).to_pylist()
    rows = rows_of(args.name, known)
    parquet.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), args.out)
    kinds = dict(Counter(row["kind"] for row in rows))
    print(f"{args.out}: {len(rows)} questions, {args.out.stat().st_size:,} bytes, {kinds}")


if __name__ == "__main__":
    main()
