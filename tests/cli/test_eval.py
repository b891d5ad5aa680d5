"""`eval`: how long it will take is told first, and what is finished is neither lost nor measured twice."""

import json
import re

from command import call
from globalcom2 import CompressionConfig
from globalcom2.cli import eval as command
from globalcom2.core.methods import parse_method
from globalcom2.lab.dataset import Example, Question
from globalcom2.lab.durations import seconds_left, told
from globalcom2.lab.evals import Journal, Outcome, settings_of

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

    def measured(wanted, ratios, methods, batch_size, out):
        asked.append((wanted["pictures"], ratios, methods))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_measured", measured)
    for words in ([], ["--quick"], ["--quick", "--pictures", "7", "--retention", "0.5", "--method", "random"]):
        assert call(capsys, "eval", *words)[0] == 130
    assert asked[0] == (None, list(command.RATIOS), list(command.METHODS))
    assert asked[1] == (60, [1.0, 0.25, 0.1], ["globalcom2", "globalcom2:preset=paper", "uniform"])
    assert asked[2] == (7, [0.5], ["random"])


def test_a_saved_configuration(monkeypatch, capsys, tmp_path):
    CompressionConfig.from_preset("paper", retention_ratio=0.3).save_pretrained(tmp_path)
    asked = []

    def measured(wanted, *found):
        asked.append(found[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_measured", measured)
    for words in ([], ["--retention", "0.5", "--method", "uniform"]):
        assert call(capsys, "eval", "--config", str(tmp_path), *words)[0] == 130
    (ratios, (method,)), others = asked
    assert ratios == [0.3]
    assert parse_method(method) == parse_method("globalcom2:preset=paper")
    assert others == ([0.5], ["uniform:layer=-1"])


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
