"""`tune`: a promise becomes a configuration, nothing promised is an exit code, and what is finished is not asked again."""

import json
import re

import pytest

from command import call
from globalcom2 import CompressionConfig
from globalcom2.cli import tune as command
from globalcom2.lab import evals
from globalcom2.lab.journal import Outcome
from globalcom2.mini import EVALUATION_SET

FEW = [str(EVALUATION_SET), "--pictures", "8", "--choosing", "0.3", "--method", "uniform", "--retention", "0.5"]
"""Two images choose, six check: enough for a bound of 90 points where nothing is lost."""


@pytest.fixture(autouse=True)
def answers(monkeypatch):
    """Every question is answered rightly, at once; what was asked, as setting and images."""
    asked = []

    def answer(model, processor, block, name, examples, **options):
        block()
        asked.append((name, [example.number for example in examples]))
        return [Outcome(name, example.number, [True] * len(example.questions), 50, 0.5) for example in examples]

    monkeypatch.setattr(evals, "answer_examples", answer)
    return asked


def test_a_promise_becomes_a_configuration(capsys, tmp_path):
    folder = tmp_path / "tuned"
    words = ["tune", *FEW, "--max-loss", "90%", "--out", str(folder)]
    code, out, err = call(capsys, *words)
    assert code == 0, err
    assert re.search(r"Choosing: 16 questions about 2 images in 2 settings: about \d+ (s|min)\.", err)
    assert err.index("Checking: 48 questions about 6 images in 2 settings: at most") > err.index("Choosing:")
    assert "Promised: uniform at 0.5 loses less than 90 points" in " ".join(out.split())
    assert CompressionConfig.from_pretrained(folder) == CompressionConfig(0.5, "uniform")
    assert sorted(path.name for path in folder.iterdir()) == ["compression_config.json", "tuning.json"]
    code, printed, err = call(capsys, *words, "--json")
    result = json.loads(printed)
    assert result == json.loads((folder / "tuning.json").read_text())
    assert "has this result already" in err
    assert result["promised"]["method"] == "uniform"
    assert (result["max_loss"], result["confidence"], result["seed"]) == (0.9, 0.95, 0)
    code, _, err = call(capsys, *words, "--seed", "1")
    assert code == 2
    assert "which holds a result of other settings" in err


def test_nothing_promised_has_a_code_of_its_own_and_a_stopped_search_goes_on(capsys, tmp_path, monkeypatch, answers):
    words = ["tune", *FEW, "--max-loss", "1%", "--out", str(tmp_path), "--json"]
    answer = evals.answer_examples

    def stop(model, processor, block, name, examples, **options):
        if len(answers) == 4:
            raise KeyboardInterrupt
        return answer(model, processor, block, name, examples, **options)

    monkeypatch.setattr(evals, "answer_examples", stop)
    assert call(capsys, *words)[0] == 130
    journal = tmp_path / "tuning.partial.jsonl"
    kept = [(line["setting"], line["picture"]) for line in map(json.loads, journal.read_text().splitlines()[1:])]
    assert len(kept) == 2  # one image in both settings; the other calls were for the timing
    monkeypatch.setattr(evals, "answer_examples", answer)
    answers.clear()
    code, out, err = call(capsys, *words)
    assert code == command.NOTHING == 3
    assert not {(name, number) for name, numbers in answers for number in numbers} & set(kept)
    result = json.loads(out)
    assert result["promised"] is None
    assert result["checking"]["runs"] == []
    assert not journal.exists()
    assert not (tmp_path / "compression_config.json").exists()
    assert "needs 302 images to check, even if no answer is lost. There are 6." in " ".join(err.split())
    code, out, _ = call(capsys, *words[:-1])
    assert code == 3
    assert "Nothing can be promised" in out


def test_a_configuration_that_is_promised_no_longer_goes(capsys, tmp_path, monkeypatch):
    words = ["tune", *FEW, "--out", str(tmp_path)]
    CompressionConfig(0.25).save_pretrained(tmp_path)
    code, _, err = call(capsys, *words, "--max-loss", "90%")
    assert code == 2  # somebody else's configuration
    assert "--out must be a folder without a configuration of its own" in " ".join(err.split())
    assert call(capsys, *words, "--max-loss", "90%", "--force")[0] == 0
    assert CompressionConfig.from_pretrained(tmp_path).retention_ratio == 0.5
    assert call(capsys, *words, "--max-loss", "1%", "--force")[0] == command.NOTHING
    assert [path.name for path in tmp_path.iterdir()] == ["tuning.json"]


def test_the_verdict_names_what_it_would_take():
    base = {"max_loss": 0.015, "confidence": 0.95, "pictures": 600, "promised": None, "pictures_needed": 1234}
    assert "about 1,234 images" in command.verdict(base)
    assert "1.5 points" in command.verdict(base)
    assert "images" not in command.verdict({**base, "pictures_needed": None})
    close = command.verdict({**base, "pictures_needed": 580})  # it failed with 600
    assert "580" not in close
    assert "The check was close" in close
    promised = {"method": "globalcom2", "retention_ratio": 0.25, "options": {"alpha": 0.3}, "visual_tokens": 85.4}
    told = command.verdict({**base, "promised": promised})
    assert "globalcom2, alpha=0.3 at 0.25 loses less than 1.5 points" in told
    assert "95% confidence" in told
    assert "85 visual tokens" in told


@pytest.mark.parametrize(
    ("text", "share"), [("1%", 0.01), ("0.5 %", 0.005), ("0.02", 0.02), (".5%", 0.005), ("12.5%", 0.125)]
)
def test_shares(text, share):
    assert command.read_share(text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--max-loss'"),
        (["--max-loss", "2"], "Did you mean 2%?"),
        (["--max-loss", "0"], "must be more than 0 and less than 100%"),
        (["--max-loss", "-1%"], "must be more than 0"),
        (["--max-loss", "100%"], "less than 100%"),
        (["--max-loss", "little"], "such as 1% or 0.01, got 'little'"),
        (["--max-loss", "1%", "--choosing", "1"], "--choosing must be a share in (0, 1), got 1"),
        (["--max-loss", "1%", "--retention", "10"], "Did you mean 0.1?"),
        (["--max-loss", "1%", "--retention", "1"], "--retention must hold a ratio below 1"),
        (["--max-loss", "1%", "--method", "unifrom"], "Did you mean 'uniform'"),
        (["--max-loss", "1%", "--out", str(EVALUATION_SET)], "--out must be a folder, got the file"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    code, out, err = call(capsys, "tune", str(EVALUATION_SET), "--pictures", "2", *arguments)
    assert code == 2
    assert message in " ".join(err.split())
    assert out == ""


def test_a_set_that_is_not_there(capsys, tmp_path):
    code, _, err = call(
        capsys, "tune", str(tmp_path / "mine.parquet"), "--max-loss", "1%", "--out", str(tmp_path / "o")
    )
    assert code == 2
    assert "which is not there" in err
    assert not (tmp_path / "o").exists()
