"""`eval` and `analyze`: answers equal those of separate calls, intervals those of a plain bootstrap, stops lose nothing."""

import copy
import io
import json
import random

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from globalcom2 import InputError, Ranking, compress, load_mini
from globalcom2.cli import main
from globalcom2.lab.analysis import analyze_views
from globalcom2.lab.answers import answer_apart, answer_questions
from globalcom2.lab.chat import chat_prompt
from globalcom2.lab.dataset import COLUMNS, Example, Question, fingerprint, load_examples
from globalcom2.lab.evals import EvalSetting, batches, evaluate, settings_of
from globalcom2.lab.intervals import Bootstrap, interval
from globalcom2.lab.journal import Journal, journal_header
from globalcom2.lab.labels import FULL
from globalcom2.lab.summaries import markdown_table
from globalcom2.mini import EVALUATION_SET


@pytest.fixture(scope="module")
def mini():
    torch.set_num_threads(1)
    return load_mini()


@pytest.fixture(scope="module")
def examples():
    return load_examples(EVALUATION_SET, 8)


def separately(mini, example, question):
    model, processor = mini
    inputs = processor(text=chat_prompt(processor, question.text), images=example.image, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    return processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("ratio", [None, 0.25])
def test_answers_equal_those_of_separate_calls(mini, examples, ratio):
    model, processor = mini
    group = next(batches(examples, 4))
    with compress(model, ratio or 1.0):
        answers = answer_questions(
            model, processor, [p.image for p in group], [[q.text for q in p.questions] for p in group], 6
        )
        expected = [[separately(mini, p, q) for q in p.questions] for p in group]
    assert answers.texts == expected


def test_batches_hold_every_example_once_and_one_size(examples):
    found = list(batches(examples, 3))
    assert sorted(p.number for group in found for p in group) == [p.number for p in examples]
    assert all(len({p.size for p in group}) == 1 and len(group) <= 3 for group in found)


def untimed(row):
    times = ("seconds_per_picture", "selection_ms", "selection_share")
    assert set(times) <= set(row)
    return {name: value for name, value in row.items() if name not in times}


def test_a_stopped_run_goes_on_and_ends_with_the_same_result(mini, examples, tmp_path):
    settings = settings_of(["uniform"], [1.0, 0.1])
    whole = evaluate(*mini, examples, settings, batch_size=2)

    def stop(done, left=[3]):  # noqa: B006
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    path, header = tmp_path / "run.partial.jsonl", journal_header(mini[0], examples, "0")
    with pytest.raises(KeyboardInterrupt):
        evaluate(*mini, examples, settings, batch_size=2, journal=Journal(path, header), progress=stop)
    with path.open("a") as file:
        file.write('{"setting": "uniform 0.1", "pict')  # killed while it wrote
    before = len(Journal(path, header).found)
    assert before >= 3
    rows = evaluate(*mini, examples, settings, batch_size=2, journal=Journal(path, header))
    assert len(Journal(path, header).found) == 2 * len(examples)  # the half-written line spoilt no other
    for row, expected in zip(rows, whole, strict=True):
        assert untimed(row) == untimed(expected)


def test_a_journal_of_another_run_is_refused(mini, examples, tmp_path):
    path = tmp_path / "run.partial.jsonl"
    Journal(path, journal_header(mini[0], examples, "0"))
    other = copy.deepcopy(mini[0])
    with torch.no_grad():
        other.lm_head.weight.mul_(1.01)
    with pytest.raises(InputError, match=r"must belong to this model.*--out"):
        Journal(path, journal_header(other, examples, "0"))
    with pytest.raises(InputError, match=r"must belong to this model.*--out"):
        Journal(path, journal_header(mini[0], examples[1:], "0"))


def plain(views, retention_ratio):
    ratios = torch.full(views.scores.shape[:-1], retention_ratio)
    return Ranking(views.thumbnail_scores, views.scores, ratios)


def test_a_function_is_evaluated_under_its_name(mini, examples, tmp_path):
    few = examples[:2]
    settings = [EvalSetting(FULL, 1.0), EvalSetting(plain, 0.1), EvalSetting("uniform", 0.1)]
    full, own, known = evaluate(*mini, few, settings)
    assert own["method"] == "plain"
    assert own["selection_ms"] > 0
    assert 0 < own["selection_share"] < 1
    assert full["selection_ms"] is None
    assert json.loads(json.dumps(own))["right"] == known["right"]
    assert "| plain | 0.1 |" in markdown_table([full, own])
    with pytest.raises(InputError, match=r"journal must be left out .* method 'plain'\. Register"):
        evaluate(*mini, few, settings, journal=Journal(tmp_path / "journal.jsonl", {}))
    with pytest.raises(InputError, match=r"names of their own, got 'plain 0\.1' twice"):
        evaluate(*mini, few, [*settings, EvalSetting(plain, 0.1)])


def test_a_longer_study_asks_only_what_is_new(mini, examples, tmp_path):
    path, header = tmp_path / "journal.jsonl", journal_header(mini[0], examples, "0")
    evaluate(*mini, examples[:2], settings_of(["uniform"], [0.1]), journal=Journal(path, header))
    before = path.read_text()
    rows = evaluate(*mini, examples[:2], settings_of(["random", "uniform"], [0.1]), journal=Journal(path, header))
    assert [row["method"] for row in rows] == [FULL, "random", "uniform"]
    assert path.read_text().startswith(before)
    added = [json.loads(line) for line in path.read_text()[len(before) :].splitlines()]
    assert [line["setting"] for line in added] == ["random 0.1"] * 2


def test_tokens_that_leave_inside_count_as_the_mean_over_layers(mini, examples):
    """The mini model's language model has four layers; FastV halves after two of them."""
    texts = ["globalcom2:inside=fastv", "all tokens:inside=pyramiddrop", "globalcom2"]
    rows = evaluate(*mini, examples[:2], settings_of(texts, [0.3]))
    full, after, alone, plain = rows
    assert after["prompt_ratio"] == pytest.approx(0.4)
    assert after["inside_share"] == 0.5
    assert after["visual_tokens"] == pytest.approx(plain["visual_tokens"], abs=1)
    assert alone["prompt_ratio"] == 1.0
    share = alone["inside_share"]
    assert (1 + share + share**2 + share**3) / 4 == pytest.approx(0.3)
    assert alone["visual_tokens"] == pytest.approx(0.3 * full["visual_tokens"], abs=1)
    assert (after["selection_ms"], alone["selection_ms"]) == (None, None)


@pytest.mark.parametrize("options", [{"retention_ratio": 0.2}, {"retention_ratio": 1.0, "inside": "fastv"}])
def test_questions_of_their_own_get_the_same_answers(mini, examples, options):
    group = next(batches(examples, 2))
    with compress(mini[0], **options):
        answers = answer_apart(*mini, [p.image for p in group], [[q.text for q in p.questions] for p in group], 6)
        assert answers.texts == [[separately(mini, p, q) for q in p.questions] for p in group]


def test_a_processor_that_pads_on_the_right(mini, examples, monkeypatch):
    """Questions of unequal length would be answered after padding."""
    group, (model, processor) = next(batches(examples, 2)), mini
    pictures, questions = [p.image for p in group], [["what color is the largest tag?"], ["how many tags are there?"]]
    assert len({len(processor.tokenizer(asked[0]).input_ids) for asked in questions}) == 2
    expected = answer_apart(model, processor, pictures, questions, 6)
    monkeypatch.setattr(processor.tokenizer, "padding_side", "right")
    assert answer_apart(model, processor, pictures, questions, 6) == expected


def test_rows_count_what_was_really_fed(mini, examples):
    model, processor = mini
    rows = evaluate(model, processor, examples, settings_of(["globalcom2"], [0.1]))
    before, after = [], []
    for example in examples:
        inputs = processor(text="<image>", images=example.image, return_tensors="pt")
        before.append(int((inputs["input_ids"] == model.config.image_token_id).sum()))
        with compress(model, 0.1) as compression, torch.no_grad():
            after.append(before[-1] - (inputs["input_ids"].shape[1] - model(**inputs).logits.shape[1]))
        assert compression.report.tokens_after == after[-1]
    assert rows[0]["visual_tokens"] == np.mean(before)
    assert rows[1]["visual_tokens"] == np.mean(after)
    assert len(rows[0]["right"]) == 8 * len(examples)


def test_settings_start_with_all_tokens_once():
    found = settings_of(["uniform", "globalcom2:alpha=0.3,newlines=none", "uniform"], [0.1, 1.0, 0.5])
    options = {"alpha": 0.3, "newlines": "none"}
    expected = [EvalSetting(FULL, 1.0)]
    for ratio in (0.5, 0.1):
        expected += [EvalSetting("uniform", ratio), EvalSetting("globalcom2", ratio, options)]
    assert found == expected
    assert len({setting.name for setting in found}) == len(found)


def test_intervals_equal_a_bootstrap_over_pictures_by_hand():
    draw = random.Random(0)
    owner = np.repeat(np.arange(40), 5)
    right = np.array([draw.random() < 0.3 + 0.5 * (picture % 2) for picture in owner])
    low, high = interval(Bootstrap(owner, resamples=4000).accuracies(right))
    means = []
    for _ in range(4000):
        chosen = [draw.randrange(40) for _ in range(40)]
        means.append(np.mean([right[owner == picture].mean() for picture in chosen]))
    expected = np.percentile(means, [2.5, 97.5])
    assert np.allclose([low, high], expected, atol=0.012)
    questions = interval(Bootstrap(np.arange(200), resamples=4000).accuracies(right))
    assert high - low > questions[1] - questions[0]  # questions about one picture fail together


def test_intervals_among_some_questions_and_none():
    bootstrap = Bootstrap(np.array([0, 0, 1, 1]))
    among = np.array([True, False, False, False])
    assert interval(bootstrap.accuracies(np.array([True, False, False, False]), among)) == [1.0, 1.0]


def test_analysis_drops_whole_views(mini, examples):
    model, _ = mini
    rows = {row["condition"]: row for row in analyze_views(*mini, examples[:4], batch_size=2)}
    tokens = {name: row["visual_tokens"] for name, row in rows.items()}
    assert tokens["thumbnail only"] == 64
    assert tokens["crops only"] == tokens[FULL] - 64
    assert tokens["drop most important crop"] <= tokens[FULL] - 64
    assert tokens["drop least important crop"] <= tokens[FULL] - 64
    assert rows[FULL]["relative"] == 1.0
    assert "generate" not in model.__dict__


def test_the_shipped_set_is_what_it_says():
    datasets = pytest.importorskip("datasets")
    from datasets.config import HF_DATASETS_CACHE  # noqa: F401

    schema = parquet.read_schema(EVALUATION_SET)
    features = datasets.Features.from_arrow_schema(schema)
    assert isinstance(features["image"], datasets.Image)
    table = parquet.read_table(EVALUATION_SET, columns=["picture", "kind", "question", "answer"]).to_pydict()
    assert len(table["picture"]) == 600 * 8
    assert sorted(set(table["picture"])) == list(range(600))
    assert len(set(zip(table["picture"], table["question"], strict=True))) == 600 * 8
    assert EVALUATION_SET.stat().st_size <= 15 * 2**20


def test_command_line_writes_result_and_plot_and_takes_it_up_again(tmp_path, capsys):
    out, plot = tmp_path / "result.json", tmp_path / "plot.png"
    arguments = ["eval", "--pictures", "4", "--retention", "0.25", "--method", "uniform", "--out", str(out)]
    arguments += ["--method", "globalcom2:alpha=0.3"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--plot", str(plot), "--json"])
    assert stop.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    assert [(run["method"], run["options"]) for run in printed["runs"]] == [
        (FULL, {}), ("uniform", {}), ("globalcom2", {"alpha": 0.3}),
    ]  # fmt: skip
    assert plot.stat().st_size > 5000
    assert not list(tmp_path.glob("*.partial*"))
    with pytest.raises(SystemExit):
        main(["analyze", "--pictures", "2", "--plot", str(tmp_path / "views.png")])
    shown = capsys.readouterr().out
    assert "thumbnail only" in shown
    assert (tmp_path / "views.png").stat().st_size > 3000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--retention", "10"], "Did you mean 0.1?"),
        (["--method", "globalcon2"], "globalcom2"),
        (["--method", "globalcom2:alpha"], "must be NAME=VALUE, got 'alpha'"),
        (["--method", "globalcom2:alfa=0.3"], "Did you mean 'alpha'"),
        (["--method", "globalcom2:alpha=3"], "alpha must be a number in [0, 1], got 3"),
        (["--method", "globalcom2:exact=no"], "exact must be True or False, got 'no'"),
        (["--method", "uniform:retention_ratio=0.5"], "must not be 'retention_ratio'"),
        (["--dataset", "nowhere.parquet"], "which is not there"),
        (["--out", "result.txt"], "--out must be a .json file"),
        (["--plot", "nowhere/plot.png"], "--plot must be"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["eval", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_set(tmp_path):
    text = tmp_path / "a.parquet"
    text.write_text("no parquet")
    with pytest.raises(InputError, match="must be a parquet file with the columns"):
        load_examples(text)
    parquet.write_table(pa.table({"picture": [1]}), text)
    with pytest.raises(InputError, match=r"must .* the columns"):
        load_examples(text)


def test_a_set_of_ones_own(tmp_path):
    from PIL import Image

    encoded = io.BytesIO()
    Image.new("RGB", (224, 112), "grey").save(encoded, "PNG")
    row = {
        "picture": 7,
        "image": {"bytes": encoded.getvalue(), "path": None},
        "kind": "k",
        "question": "q",
        "answer": "a",
    }
    path = tmp_path / "own.parquet"
    parquet.write_table(pa.Table.from_pylist([row, {**row, "question": "r"}]).select(list(COLUMNS)), path)
    (example,) = load_examples(path)
    assert example == Example(7, encoded.getvalue(), (Question("k", "q", "a"), Question("k", "r", "a")))
    assert example.size == (224, 112)
    assert fingerprint([example]) == fingerprint(load_examples(path))


def test_table_has_a_row_per_run(mini, examples):
    table = markdown_table(evaluate(*mini, examples[:2], settings_of(["uniform"], [0.5])))
    assert table.count("\n") == 3
    assert "| uniform | 0.5 |" in table
