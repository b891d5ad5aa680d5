"""`eval`: how long it will take is told first, and what is finished is neither lost nor measured twice."""

import json
import re

import pytest

from command import call
from globalcom2 import CompressionConfig, Method
from globalcom2.cli import eval as command
from globalcom2.cli.eval_table import print_eval
from globalcom2.core import methods, plugins
from globalcom2.core.methods import method_text, parse_method
from globalcom2.core.presets import PRESETS
from globalcom2.lab.dataset import Example, Question
from globalcom2.lab.durations import seconds_left, told
from globalcom2.lab.evals import settings_of
from globalcom2.lab.journal import Journal, Outcome
from globalcom2.lab.labels import FULL, label
from globalcom2.lab.studies import study_methods

FEW = ["--pictures", "2", "--retention", "0.1", "--method", "uniform"]


def test_a_result_of_the_same_run_is_shown_again(capsys, tmp_path):
    path = tmp_path / "result.json"
    words = ["eval", *FEW, "--out", str(path)]
    code, out, err = call(capsys, *words)
    assert code == 0, err
    assert re.search(r"16 questions about 2 images in 2 settings: about \d+ (s|min)\.", err)
    assert err.index("about 2 images") < err.index("Answering")
    before = path.read_bytes()
    assert call(capsys, *words)[1] == out
    code, printed, err = call(capsys, *words, "--json")
    assert json.loads(printed) == json.loads(before)
    assert "has this result already; --force measures again" in err
    assert "Loading" not in err
    for change in (["--retention", "0.2"], ["--method", "random"], ["--model", "other/model"], ["--dtype", "bfloat16"]):
        code, _, err = call(capsys, *words, *change)
        assert code == 2, change
        assert "which holds a result of other settings" in err
    assert path.read_bytes() == before


def test_quick_asks_less(monkeypatch, capsys):
    asked = []

    def measured(wanted, ratios, methods, batch_size, kept, *, lenient):
        asked.append((wanted["pictures"], ratios, methods, lenient))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_measured", measured)
    for words in ([], ["--quick"], ["--quick", "--pictures", "7", "--retention", "0.5", "--method", "random"]):
        assert call(capsys, "eval", *words)[0] == 130
    assert asked[0] == (None, [1.0, 0.25, 0.1, 0.05, 0.03], study_methods(), True)
    assert asked[1] == (60, list(command.QUICK_RATIOS), list(command.QUICK_METHODS), True)
    assert asked[2] == (7, [0.5], ["random"], False)


@pytest.fixture
def outsider(monkeypatch):
    """A package beside this one, with a method of its own and one that needs more than there is."""

    class Entry:
        name, value, dist = "outsider", "outside:METHOD", None

        def __init__(self, method):
            self.method = method

        def load(self):
            return self.method

    def last(views, retention_ratio, *, must):
        raise AssertionError

    uniform = "globalcom2.selectors.uniform:uniform"
    made = [Method("outsider", uniform, "as uniform", code_newlines="none"), Method("lacking", last, "has no default")]
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    monkeypatch.setattr(
        plugins, "entry_points", lambda group: map(Entry, made if group == methods.ENTRY_POINTS else [])
    )
    methods._load_entry_points.cache_clear()
    yield made[0]
    methods._load_entry_points.cache_clear()


def test_every_method_is_tried_once_by_each_rule_for_newlines():
    texts = study_methods()
    assert texts[0] == "globalcom2"
    assert {parse_method(text)[0] for text in texts if not text.startswith(FULL)} == set(methods.list_methods())
    settings = settings_of(texts, [0.1])
    assert len(settings) == len(texts) + 1  # no two mean the same
    assert len({setting.name for setting in settings}) == len(settings)
    ruled = {text.partition(":")[0]: text for text in texts if "newlines=" in text}
    assert set(ruled) == {name for name in methods.list_methods() if methods.get_method(name).code_newlines}
    assert set(ruled) < set(texts)


def test_an_outsiders_method_stands_beside_the_others(capsys, outsider, monkeypatch, tmp_path):
    ours = [text for text in study_methods() if text == "globalcom2" or text.startswith(("outsider", "lacking"))]
    assert len(ours) == 4
    monkeypatch.setattr("globalcom2.lab.studies.study_methods", lambda: ours)
    out = tmp_path / "result.json"
    code, table, err = call(capsys, "eval", "--pictures", "2", "--retention", "0.1", "--out", str(out))
    assert code == 0, err
    assert "Left out: lacking: option 'must' of method 'lacking' must be given" in err
    block = table.split("ratio 0.1")[1]
    names = [line.split("  ")[0].strip() for line in block.splitlines() if line.strip()]
    assert {"outsider", "outsider, nl=none", "globalcom2"} <= set(names)
    rows = {label(row): row for row in json.loads(out.read_text())["runs"]}
    assert rows["outsider"]["difference"] is not None
    assert rows["globalcom2"]["difference"] is None
    assert rows["outsider"]["visual_tokens"] == rows["globalcom2"]["visual_tokens"]
    code, _, err = call(capsys, "eval", "--pictures", "2", "--retention", "0.1", "--method", "lacking")
    assert code == 2  # a method that was asked for is not left out
    assert "must be given" in err


def test_a_journal_serves_a_longer_study(capsys, tmp_path):
    journal = tmp_path / "journal.jsonl"
    assert call(capsys, "eval", *FEW, "--journal", str(journal))[0] == 0
    before = journal.read_text()
    code, out, err = call(capsys, "eval", *FEW, "--method", "random", "--journal", str(journal), "--json")
    assert code == 0, err
    assert [run["method"] for run in json.loads(out)["runs"]] == [FULL, "uniform", "random"]
    added = journal.read_text().removeprefix(before).splitlines()
    assert [json.loads(line)["setting"] for line in added] == ["random 0.1"] * 2
    code, _, err = call(capsys, "eval", *FEW, "--journal", str(tmp_path / "journal.txt"))
    assert code == 2
    assert "--journal must be a .jsonl file" in err


def test_a_saved_configuration(monkeypatch, capsys, tmp_path):
    CompressionConfig.from_preset("paper", retention_ratio=0.3).save_pretrained(tmp_path)
    asked = []

    def measured(wanted, *found, lenient):
        assert not lenient
        asked.append(found[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_measured", measured)
    for words in ([], ["--retention", "0.5", "--method", "uniform"]):
        assert call(capsys, "eval", "--config", str(tmp_path), *words)[0] == 130
    (ratios, (method,)), others = asked
    assert ratios == [0.3]
    assert parse_method(method) == parse_method("globalcom2:preset=paper")
    of_compress = {name: value for name, value in PRESETS["paper"].items() if name in ("layer", "newlines")}
    assert others == ([0.5], [method_text("uniform", of_compress)])


def test_what_is_left_is_in_proportion(monkeypatch):
    """Two batches of 2 of one size, one of 1; 10 s per image with all tokens and 1 s at the lowest ratio."""
    from contextlib import nullcontext

    from globalcom2.lab import durations, evals

    examples = [Example(n, b"", (Question("k", "q", "a"),)) for n in range(5)]
    monkeypatch.setattr(evals.Example, "size", (1, 1), raising=False)
    settings = settings_of(["uniform", "random"], [0.5, 0.1])
    pace = {1.0: 10.0, 0.5: 99.0, 0.1: 1.0}
    tower = {1.0: 0.0, 0.1: 0.25}  # what the second setting need not spend any more
    answered = []

    def answer(model, processor, setting, batch, shared=None):
        answered.append((setting.name, [example.number for example in batch]))
        ratio = setting.retention_ratio
        return [Outcome(setting.name, e.number, [True], 5, pace[ratio], saved_seconds=tower[ratio]) for e in batch]

    monkeypatch.setattr(durations, "answer_in", answer)
    monkeypatch.setattr(durations, "shared_tower", nullcontext)
    journal = Journal(None, {})
    alone = 3 * 10 + 2 * 5 * (1 + 9 * 0.4 / 0.9) + (3 + 5) * 1  # the first batch is done at 1 and at 0.1
    expected = alone - (3 + 2 * 5 + 3 + 5) * 0.25 + 5 * 0.25
    assert abs(seconds_left(None, None, examples, settings, 2, journal) - expected) < 1e-9
    first, least = settings[0].name, settings[3].name
    assert answered == [(first, [0]), (least, [0]), (first, [0, 1]), (least, [0, 1])]
    assert set(journal.found) == {(name, n) for name in (first, least) for n in (0, 1)}
    assert abs(seconds_left(None, None, examples, settings, 2, journal) - expected) < 1e-9
    assert len(answered) == 4  # a resumed run times nothing again


def test_durations_in_words():
    assert [told(seconds) for seconds in (0.2, 42.4, 89, 91, 5000, 6000)] == [
        "1 s",
        "42 s",
        "89 s",
        "2 min",
        "83 min",
        "1.7 h",
    ]


def test_tokens_that_leave_inside_alone_can_be_asked_for(capsys):
    words = ["--pictures", "2", "--retention", "0.5", "--method", "all tokens:inside=fastv"]
    code, out, err = call(capsys, "eval", *words, "--json")
    assert code == 0, err
    full, alone = json.loads(out)["runs"]
    assert (alone["method"], alone["options"]) == ("all tokens", {"inside": "fastv"})
    assert alone["visual_tokens"] < full["visual_tokens"]


def test_a_ratio_of_1_leaves_nothing_to_drop_inside(capsys, tmp_path):
    CompressionConfig(1.0, inside="fastv").save_pretrained(tmp_path)
    for words in (["--config", str(tmp_path)], ["--retention", "1", "--method", "globalcom2:inside=fastv"]):
        code, _, err = call(capsys, "eval", "--pictures", "2", *words)
        assert code == 2
        assert "--retention must hold a ratio below 1 with inside" in " ".join(err.split())


def test_remarks_fit_what_was_tried(capsys):
    figures = {"questions": 8, "accuracy": 0.5, "interval": [0.4, 0.6], "visual_tokens": 34.0, "kinds": {"read": 0.5}}
    about = {"model": "mini", "dataset": "mine.parquet", "pictures": 4}
    full = {"method": FULL, "retention_ratio": 1.0, "options": {}, **figures}
    own, other = (
        {"method": name, "retention_ratio": 0.1, "options": {}, **figures} for name in ("globalcom2", "uniform")
    )
    told = []
    for rows in (
        [full, other],
        [full, own],
        [full, own, {**other, "difference": 0.0, "difference_interval": [0.0, 0.1]}],
    ):
        print_eval({**about, "runs": rows})
        told.append(" ".join(capsys.readouterr().out.split()))
    assert ["add --method globalcom2" in text for text in told] == [True, False, False]
    assert ["minus default:" in text for text in told] == [False, False, True]
    assert ["ratio 0.1 tokens all ms share" in text for text in told] == [True, True, False]
    print_eval({**about, "runs": [full, {**other, "options": {"inside": "fastv", "newlines": "none"}}]})
    text = " ".join(capsys.readouterr().out.split())
    assert "mean over the language model's layers" in text
    assert "nl: newlines" in text
    assert not any("language model's layers" in text or "nl:" in text for text in told)
