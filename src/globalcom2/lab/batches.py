"""Questions about many pictures, answered into a CSV file row by row. A stopped run goes on where it was."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from globalcom2.core.budget import ratio_text
from globalcom2.errors import InputError
from globalcom2.lab.images import open_image
from globalcom2.lab.labels import FULL
from globalcom2.lab.settings import Setting

COLUMNS = (
    "image", "question", "model", "method", "retention_ratio", "max_new_tokens", "answer", "visual_tokens",
    "prompt_tokens", "prefill_flops", "seconds", "error",
)  # fmt: skip
KEY = COLUMNS[:6]
"""What was asked, of what, and how: a row with the same values is not asked again."""
Key = tuple[str, ...]
NAMES = "surrogateescape"
"""Names of files that are no UTF-8 keep their bytes in the table, as Python has them."""


@dataclass(frozen=True)
class Item:
    """A picture and what is asked about it."""

    image: str
    """As the source names it."""
    path: Path
    question: str


def read_items(source: Path, question: str | None) -> list[Item]:
    """What a folder or a JSONL file asks; a picture and question that stand twice are asked once.

    Args:
        source: A folder, whose pictures are taken in order of their names, without those of folders in it; or a file
            with one JSON object {"image": ..., "question": ...} a line, paths relative to the file.
        question: Asked about every picture of a folder, and in lines without a question.

    Raises:
        InputError: No such source, nothing in it, a line that cannot be read, or no question.
    """
    if source.is_dir():
        if question is None:
            raise InputError(f"--question must be given for a folder, got none for {str(source)!r}.")
        found = [Item(path.name, path, question) for path in sorted(source.iterdir()) if _is_picture(path)]
    elif source.is_file() and source.suffix.lower() == ".jsonl":
        # Not splitlines(), which parts texts at other characters, too, such as U+2028.
        lines = source.read_text(encoding="utf-8-sig", errors="replace").split("\n")
        found = [_item(source, number, line, question) for number, line in enumerate(lines, 1) if line.strip()]
    else:
        raise InputError(
            f"the source must be a folder of pictures or a .jsonl file, got {str(source)!r}, which is "
            f"{'another file' if source.exists() else 'not there'}."
        )
    if not found:
        raise InputError(f"the source must hold pictures, got none in {str(source)!r}.")
    blank = next((item for item in found if not item.question.strip()), None)
    if blank is not None:
        raise InputError(f"question must be text, got {blank.question!r} for {blank.image!r}.")
    return list(dict.fromkeys(found))


def _is_picture(path: Path) -> bool:
    """Whether a file's ending is one that Pillow reads."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    return kind in Image.OPEN and path.is_file() and not path.name.startswith(".")


def _item(source: Path, number: int, line: str, question: str | None) -> Item:
    """One line of a JSONL file."""
    try:
        read = json.loads(line)
    except ValueError as error:
        raise InputError(f"line {number} of {str(source)!r} must be a JSON object, got {line:.60} ({error}).") from None
    asked = read.get("question", question) if isinstance(read, dict) else None
    image = read.get("image") if isinstance(read, dict) else None
    if not isinstance(image, str) or not image or not isinstance(asked, str):
        raise InputError(
            f'line {number} of {str(source)!r} must be {{"image": "a path", "question": "a text"}}, got {line:.80}. '
            "--question is asked in lines without one."
        )
    if not _writable(image) or not _writable(asked):
        raise InputError(f"line {number} of {str(source)!r} must be text without lone surrogates, got {line:.80}.")
    return Item(image, source.parent / image, asked)


def _writable(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON can hold half of a character, as "\\ud800"."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


class Table:
    """A CSV file that rows are added to, each written at once.

    Args:
        path: The file. If it is there, its rows count as done; what a stop left half-written is cut off.
        keys: The keys that this run will write.

    Raises:
        InputError: The file is no table of `globalcom2 batch`, or has rows that this run would not write.
    """

    def __init__(self, path: Path, keys: Iterable[Key]):
        self.path = path
        self.done: dict[Key, bool] = {}
        """Rows that are there; False for one with an error."""
        if not path.exists() or not path.stat().st_size:
            self._add([COLUMNS])
            return
        rows, whole = _rows(path)
        if not rows or tuple(rows[0]) != COLUMNS:
            raise InputError(
                f"--csv must be a new file or one that globalcom2 batch wrote, got {str(path)!r} with other columns. Choose "
                "another name."
            )
        self.done = {tuple(row[: len(KEY)]): not row[-1] for row in rows[1:]}
        strange = next(iter(self.done.keys() - set(keys)), None)
        if strange is not None:
            was = ", ".join(f"{name} {value!r}" for name, value in zip(KEY, strange, strict=True))
            raise InputError(
                f"--csv must hold rows of this run alone to be resumed, got {str(path)!r} with a row for {was}. Give the "
                "same arguments, or choose another file."
            )
        if not whole:
            _rewrite(path, rows)

    def add(self, key: Key, values: dict[str, Any]) -> None:
        """Write one row: its key, and what was found."""
        self._add([[*key, *("" if values.get(name) is None else values[name] for name in COLUMNS[len(KEY) :])]])
        self.done[key] = not values.get("error")

    def _add(self, rows: Iterable[Sequence[Any]]) -> None:
        with self.path.open("a", newline="", encoding="utf-8", errors=NAMES) as file:
            csv.writer(file).writerows(rows)


def _rows(path: Path) -> tuple[list[list[str]], bool]:
    """The file's complete rows, and whether it has no other ones."""
    with path.open(newline="", encoding="utf-8-sig", errors=NAMES) as file:  # a spreadsheet may have added the mark
        text = file.read()
    rows = list(csv.reader(io.StringIO(text, newline="")))
    whole = text.endswith("\n") and all(len(row) == len(COLUMNS) for row in rows)
    if not whole and rows:
        rows = [row for row in rows[:-1] if len(row) == len(COLUMNS)] if len(rows) > 1 else rows
    return rows, whole


def _rewrite(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Replace the file in one step, so that a second stop loses nothing either."""
    beside = path.with_suffix(path.suffix + ".new")
    with beside.open("w", newline="", encoding="utf-8", errors=NAMES) as file:
        csv.writer(file).writerows(rows)
    beside.replace(path)


@dataclass(frozen=True)
class Batch:
    """What is asked, and how."""

    items: list[Item]
    settings: list[Setting]
    model_name: str
    full: bool = False
    """Whether all visual tokens are tried too."""
    max_new_tokens: int = 32

    def keys(self, item: Item) -> list[Key]:
        """The keys of an item's rows: all tokens first, then the settings."""
        names = [(FULL, "1")] if self.full else []
        names += [(setting.label, ratio_text(setting.retention_ratio)) for setting in self.settings]
        return [
            (item.image, item.question, self.model_name, method, ratio, str(self.max_new_tokens))
            for method, ratio in names
        ]

    @property
    def all_keys(self) -> list[Key]:
        """The keys of all rows."""
        return [key for item in self.items for key in self.keys(item)]


def answer_batch(
    model: Any, processor: Any, batch: Batch, table: Table, progress: Callable[[int], None] = lambda done: None
) -> dict[str, int]:
    """Answer what the table does not hold yet. What goes wrong with one picture is its row's error and stops nothing.

    Args:
        model: A supported model in eval mode.
        processor: Its processor.
        batch: What is asked.
        table: Where answers go.
        progress: Called with the number of rows that were just finished or found.

    Returns:
        How many rows were answered, failed, and were there already ("skipped"); "failed" counts those of earlier runs.

    Raises:
        InputError: A setting has a wrong option, before anything is asked.
    """
    ways = ([None] if batch.full else []) + [(setting, setting.block(model)) for setting in batch.settings]
    answered = skipped = 0
    warm: set[int] = set()
    for item in batch.items:
        todo = [(key, n) for n, key in enumerate(batch.keys(item)) if key not in table.done]
        skipped += len(ways) - len(todo)
        progress(len(ways) - len(todo))
        call: Any = None
        for key, number in todo:
            way = ways[number]
            try:
                call = call or _call(model, processor, item, batch.max_new_tokens)
                if number not in warm:
                    call.warm_up(way and way[1])
                    warm.add(number)
                found = call.full() if way is None else call.run(*way)
                table.add(key, found.to_dict())
            except Exception as error:  # a picture, or what a model makes of it: the others must be answered
                table.add(key, {"error": f"{type(error).__name__}: {error}"})
            answered += table.done[key]
            progress(1)
    failed = sum(not table.done[key] for key in batch.all_keys)
    return {"answered": answered, "skipped": skipped, "failed": failed}


def _call(model: Any, processor: Any, item: Item, max_new_tokens: int) -> Any:
    from globalcom2.lab.comparison import Call  # noqa: PLC0415

    return Call(model, processor, open_image(item.path), item.question, max_new_tokens)
