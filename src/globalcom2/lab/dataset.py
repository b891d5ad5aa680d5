"""Pictures with questions and answers, from a parquet file: one row per question, in the format of Hugging Face datasets."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from globalcom2.errors import InputError

COLUMNS = ("picture", "image", "kind", "question", "answer")


@dataclass(frozen=True)
class Question:
    """What is asked and the only right answer, in lower case."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Picture:
    """One picture with its questions; decoded when it is needed."""

    number: int
    encoded: bytes
    questions: tuple[Question, ...]

    @property
    def image(self) -> Image.Image:
        """The picture, RGB."""
        return Image.open(io.BytesIO(self.encoded)).convert("RGB")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in px, without decoding."""
        return Image.open(io.BytesIO(self.encoded)).size


def load_pictures(path: Path, first: int | None = None) -> list[Picture]:
    """Read a set.

    Args:
        path: Parquet file with the columns picture (int), image (struct of bytes and path), kind, question, answer.
        first: Read only that many pictures, from the first on.

    Raises:
        InputError: No such file, another format, or pyarrow is missing.
    """
    try:
        from pyarrow import parquet  # noqa: PLC0415
        from pyarrow.lib import ArrowInvalid  # noqa: PLC0415
    except ImportError:
        raise InputError(
            "pyarrow must be installed to read an evaluation set, got none. Run: pip install 'globalcom2[eval]'"
        ) from None
    if not path.is_file():
        raise InputError(f"the evaluation set must be a parquet file, got {str(path)!r}, which is not there.")
    try:
        table = parquet.read_table(path, columns=list(COLUMNS)).to_pydict()
    except (ArrowInvalid, KeyError) as error:
        raise InputError(
            f"the evaluation set must be a parquet file with the columns {', '.join(COLUMNS)}, got {str(path)!r}: {error}."
        ) from None
    if set(table) != set(COLUMNS):
        missing = ", ".join(sorted(set(COLUMNS) - set(table)))
        raise InputError(f"the evaluation set must have the columns {', '.join(COLUMNS)}, got none named {missing}.")
    encoded: dict[int, bytes] = {}
    questions: dict[int, list[Question]] = {}
    for number, image, *asked in zip(*(table[column] for column in COLUMNS), strict=True):
        encoded.setdefault(number, image["bytes"])
        questions.setdefault(number, []).append(Question(*asked))
    numbers = list(encoded)[:first]
    return [Picture(number, encoded[number], tuple(questions[number])) for number in numbers]


def fingerprint(pictures: list[Picture]) -> str:
    """Short hash of what is shown and asked."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(picture.encoded)
        digest.update(repr(picture.questions).encode())
    return digest.hexdigest()[:16]
