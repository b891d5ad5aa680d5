"""`batch`: a row per answer, a stop loses nothing, one bad picture stops nothing."""

import csv
import json

import pytest
from PIL import Image

from command import call
from globalcom2 import InputError
from globalcom2.lab import batches
from globalcom2.lab.batches import COLUMNS, Batch, Item, Table, answer_batch, read_items
from globalcom2.lab.comparison import compare
from globalcom2.lab.labels import FULL
from globalcom2.lab.settings import Setting, settings_of
from tiny import picture


@pytest.fixture
def folder(tmp_path):
    """Two pictures, a file that is none, and files that are not even taken for one."""
    made = tmp_path / "pictures"
    made.mkdir()
    picture(168, 168, 1).save(made / "b.png")
    picture(60, 200, 2).save(made / "a.JPG")
    (made / "c.png").write_text("no picture")
    (made / "notes.txt").write_text("notes")
    (made / ".hidden.png").write_text("")
    (made / "deep").mkdir()
    return made


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_pictures_of_a_folder(folder):
    items = read_items(folder, "what?")
    assert [(item.image, item.question) for item in items] == [(name, "what?") for name in ("a.JPG", "b.png", "c.png")]
    with pytest.raises(InputError, match="--question must be given for a folder"):
        read_items(folder, None)
    with pytest.raises(InputError, match="must hold pictures, got none"):
        read_items(folder / "deep", "what?")
    with pytest.raises(InputError, match="question must be text, got ' '"):
        read_items(folder, " ")


def test_lines_of_a_file(tmp_path):
    path = tmp_path / "asked.jsonl"
    lines = [{"image": "x/a.png", "question": "one?"}, {"image": "b.png"}, {"image": "x/a.png", "question": "one?"}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    first, second = read_items(path, "two?")
    assert first == Item("x/a.png", tmp_path / "x" / "a.png", "one?")
    assert second == Item("b.png", tmp_path / "b.png", "two?")
    for line, message in (
        ("{", "line 2 .* must be a JSON object, got {"),
        ("[1]", 'line 2 .* must be {"image"'),
        ('{"image": 3, "question": "q"}', "line 2"),
        ('{"image": "a.png"}', "--question is asked in lines without one"),
    ):
        path.write_text(json.dumps(lines[0]) + "\n" + line)
        with pytest.raises(InputError, match=message):
            read_items(path, None)
    (tmp_path / "asked.txt").touch()
    with pytest.raises(InputError, match="which is another file"):
        read_items(tmp_path / "asked.txt", "q")


def test_rows_equal_a_comparison(tiny, folder, tmp_path):
    settings = settings_of(["uniform", "globalcom2:preset=paper"], [0.25])
    batch = Batch(read_items(folder, "what?"), settings, "m", full=True, max_new_tokens=3)
    table, seen = Table(tmp_path / "o.csv", batch.all_keys), []
    counts = answer_batch(tiny.model, tiny.processor, batch, table, seen.append)
    assert counts == {"answered": 6, "skipped": 0, "failed": 3}
    assert sum(seen) == 9
    rows = rows_of(tmp_path / "o.csv")
    assert [row["method"] for row in rows[:3]] == [FULL, "uniform", "globalcom2, paper"]
    for first, name in ((0, "a.JPG"), (3, "b.png")):
        with Image.open(folder / name) as image:
            expected = compare(tiny.model, tiny.processor, image.convert("RGB"), "what?", settings, max_new_tokens=3)
        for row, answer in zip(rows[first : first + 3], (expected.full, *expected.runs), strict=True):
            assert (row["image"], row["answer"]) == (name, answer.answer)
            assert int(row["visual_tokens"]) == answer.visual_tokens
            assert int(row["prefill_flops"]) == answer.prefill_flops
            assert row["error"] == ""
    assert all("got 'c.png', which is none" in row["error"] and row["answer"] == "" for row in rows[6:])


def test_a_stopped_run_goes_on(tiny, folder, tmp_path, monkeypatch):
    batch = Batch(
        read_items(folder, "what?"), [Setting("uniform", 0.5), Setting("uniform", 0.25)], "m", max_new_tokens=2
    )
    path, left = tmp_path / "o.csv", [3]

    def stop(done):
        left[0] -= done
        if left[0] <= 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer_batch(tiny.model, tiny.processor, batch, Table(path, batch.all_keys), stop)
    whole = path.read_text()
    assert whole.count("\n") == 4
    path.write_text(whole + 'c.png,what?,m,uniform,0.5,2,"half of an\nanswer')  # killed while it wrote
    table = Table(path, batch.all_keys)
    assert path.read_text() == whole
    asked = []
    monkeypatch.setattr(
        batches, "_call", lambda *given, made=batches._call: asked.append(given[2].image) or made(*given)
    )
    counts = answer_batch(tiny.model, tiny.processor, batch, table)
    assert counts == {"answered": 1, "skipped": 3, "failed": 2}
    assert asked == ["b.png", "c.png", "c.png"]
    assert [row["image"] for row in rows_of(path)] == ["a.JPG"] * 2 + ["b.png"] * 2 + ["c.png"] * 2
    assert answer_batch(tiny.model, tiny.processor, batch, Table(path, batch.all_keys))["skipped"] == 6


@pytest.mark.parametrize(
    "change", [{"settings": [Setting("uniform", 0.3)]}, {"settings": [Setting("uniform", 0.25, {"layer": -1})]}, {"model_name": "n"},
               {"max_new_tokens": 3}, {"items": [Item("a.JPG", None, "what else?")]}]
)  # fmt: skip
def test_a_table_of_another_run_is_refused(tmp_path, change):
    asked = {"items": [Item("a.JPG", None, "what?")], "settings": [Setting("uniform", 0.25)], "model_name": "m"}
    first = Batch(**asked)
    table = Table(tmp_path / "o.csv", first.all_keys)
    table.add(first.all_keys[0], {"answer": "1", "seconds": None})
    before = (tmp_path / "o.csv").read_text()
    with pytest.raises(InputError, match="must hold rows of this run alone to be resumed"):
        Table(tmp_path / "o.csv", Batch(**{**asked, **change}).all_keys)
    assert (tmp_path / "o.csv").read_text() == before
    assert Table(tmp_path / "o.csv", first.all_keys).done == {first.all_keys[0]: True}


def test_another_file_is_not_written_into(tmp_path):
    path = tmp_path / "o.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="with other columns"):
        Table(path, [])
    assert path.read_text() == "a,b\n1,2\n"


def test_command(capsys, folder, tmp_path, monkeypatch, checkpoint):
    monkeypatch.setenv("COLUMNS", "80")
    out_file = tmp_path / "o.csv"
    words = [
        "batch",
        str(folder),
        "--question",
        "what?",
        "--csv",
        str(out_file),
        "--model",
        checkpoint,
        "--max-new-tokens",
        "2",
    ]
    code, out, _ = call(capsys, *words, "--json")
    assert code == 1  # one picture could not be read
    result = json.loads(out)
    seconds = result.pop("seconds")
    assert seconds > 0
    assert result == {
        "model": checkpoint, "source": str(folder), "csv": str(out_file), "pictures": 3, "rows": 3, "answered": 2,
        "skipped": 0, "failed": 1,
    }  # fmt: skip
    assert tuple(rows_of(out_file)[0]) == COLUMNS
    code, out, err = call(capsys, *words)
    assert code == 1
    assert "3 were there, 1 failed" in out
    assert "Loading" not in err  # nothing to ask
    (folder / "c.png").unlink()
    code, _, err = call(capsys, *words)
    assert code == 2
    assert "must hold rows of this run alone" in err
    out_file.unlink()
    assert call(capsys, *words)[0] == 0


ODD = "one\u2028two\x0bthree\x85four?"
"""Characters at which `str.splitlines` parts a text, and JSON and CSV do not."""


def test_a_text_with_other_ends_of_lines(tmp_path):
    path = tmp_path / "asked.jsonl"
    path.write_text(
        json.dumps({"image": "a.png", "question": "one\u2028two\x85?"}, ensure_ascii=False), encoding="utf-8"
    )
    assert [item.question for item in read_items(path, None)] == ["one\u2028two\x85?"]
    batch = Batch([Item("a.png", None, ODD), Item("b.png", None, ODD)], [Setting("uniform", 0.5)], "m")
    table = Table(tmp_path / "o.csv", batch.all_keys)
    for key in batch.all_keys:
        table.add(key, {"answer": ODD})
    before = (tmp_path / "o.csv").read_bytes()
    assert Table(tmp_path / "o.csv", batch.all_keys).done == dict.fromkeys(batch.all_keys, True)
    assert (tmp_path / "o.csv").read_bytes() == before


def test_a_table_that_a_spreadsheet_saved(tmp_path):
    batch = Batch([Item("a.png", None, "what?")], [Setting("uniform", 0.5)], "m")
    path = tmp_path / "o.csv"
    Table(path, batch.all_keys).add(batch.all_keys[0], {"answer": "1"})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert Table(path, batch.all_keys).done == {batch.all_keys[0]: True}


def test_texts_that_are_no_unicode(tmp_path):
    """A name of a file in other bytes keeps them in the table; half a character in JSON is refused before work starts."""
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    batch = Batch([Item(name, None, "what?")], [Setting("uniform", 0.5)], "m")
    path = tmp_path / "o.csv"
    Table(path, batch.all_keys).add(batch.all_keys[0], {"answer": "1"})
    assert b"caf\xe9.png" in path.read_bytes()
    assert Table(path, batch.all_keys).done == {batch.all_keys[0]: True}
    for line in (r'{"image": "a\ud800.png", "question": "q"}', r'{"image": "a.png", "question": "\udc00"}'):
        (tmp_path / "asked.jsonl").write_text(line)
        with pytest.raises(InputError, match=r"line 1 .* must be text without lone surrogates"):
            read_items(tmp_path / "asked.jsonl", None)
