"""What the page answers and shows, called without a browser."""

import re
import threading

import pytest

from globalcom2 import InputError, compress
from globalcom2.lab.chat import chat_prompt
from globalcom2.lab.dataset import load_examples
from globalcom2.mini import EVALUATION_SET
from globalcom2.web import results
from globalcom2.web.answering import Answering, Models, method_choices
from globalcom2.web.examples import EXAMPLES, example, right_answer, strip


def by_hand(mini, image, question, ratio=None, **options):
    """The answer of plain transformers, or of a plain block."""
    model, processor = mini
    inputs = processor(text=chat_prompt(processor, question), images=image, return_tensors="pt")
    if ratio is None:
        out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    else:
        with compress(model, ratio, **options):
            out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.fixture(scope="module")
def found(answering):
    one = EXAMPLES[4]
    return answering.ask(str(one.path), one.question, 0.1, ["globalcom2:preset=paper", "random"])


def test_answers_are_those_of_plain_calls(mini, found):
    image, question = EXAMPLES[4].picture(), EXAMPLES[4].question
    assert found.full.answer == by_hand(mini, image, question)
    paper, random = found.runs
    assert paper.answer == by_hand(mini, image, question, 0.1, preset="paper")
    assert random.answer == by_hand(mini, image, question, 0.1, method="random")
    assert paper.visual_tokens == random.visual_tokens == int(0.1 * found.full.visual_tokens + 0.5)
    assert len({found.full.answer, paper.answer, random.answer}) > 1, "this test must be able to see a mix-up"


def test_the_table_has_every_answer_and_figure(found):
    table = results.summary(found)
    cells = re.findall(r'<td role="cell" data-label="(.*?)">(.*?)</td>', table)
    answers = [re.sub("<.*?>", "", text) for label, text in cells if label == "Answer"]
    assert answers == [found.full.answer, *(run.answer for run in found.runs)]
    tokens = [text for label, text in cells if label == "Visual tokens"]
    assert tokens[0] == f"{found.full.visual_tokens:,}"
    assert tokens[1].startswith(f"{found.runs[0].visual_tokens} ")
    assert f"{found.full.prefill_flops / 1e9:,.2f} GFLOPs" in table
    assert f"The right answer is <strong>{EXAMPLES[4].answer}</strong>" in table
    assert "globalcom2, paper <small>ratio 0.1</small>" in table


def test_the_view_shows_both_in_one_frame(found):
    views = results.views(found)
    assert views.count("<iframe") == 1
    assert "sandbox=" in views
    assert "allow-same-origin" not in views
    assert "globalcom2, paper, ratio 0.1" in views
    assert "random, ratio 0.1" in views


def test_nothing_of_a_visitor_is_run(answering, tmp_path):
    small = str(tmp_path / "small.png")
    EXAMPLES[0].picture().resize((112, 112)).save(small)
    evil = "<img src=x onerror=alert(1)> ${1+1} {{value}} </script>"
    found = answering.ask(small, evil, 0.5, ["uniform"])
    assert "<img src=x" not in results.summary(found)
    assert "&lt;img src=x" in results.summary(found)
    assert "<script" not in results.views(found).replace("&lt;script", "")


def test_all_tokens_kept(answering):
    found = answering.ask(str(EXAMPLES[0].path), EXAMPLES[0].question, 1.0, ["globalcom2"])
    assert found.runs[0].answer == found.full.answer
    assert results.summary(found)
    assert results.views(found)


@pytest.mark.parametrize(
    ("question", "ratio", "methods", "message"),
    [
        ("", 0.1, ["uniform"], "a question must be given"),
        (" \n", 0.1, ["uniform"], "a question must be given"),
        (None, 0.1, ["uniform"], "a question must be given"),
        ({"a": 1}, 0.1, ["uniform"], "a question must be given"),
        ("x" * 501, 0.1, ["uniform"], "at most 500 characters, got 501"),
        ("see <image>?", 0.1, ["uniform"], "question must be text without '<image>'"),
        ("what?", 0.0, ["uniform"], "retention_ratio must be in"),
        ("what?", 2, ["uniform"], "retention_ratio must be in"),
        ("what?", "0.1", ["uniform"], "retention_ratio must be a number"),
        ("what?", float("nan"), ["uniform"], "retention_ratio must be in"),
        ("what?", 0.1, ["", None], "a method must be chosen"),
        ("what?", 0.1, ["globalcom2:alpha=0.3"], "method must be one of globalcom2, "),
        ("what?", 0.1, [["uniform"]], "method must be one of globalcom2, "),
    ],
)
def test_what_cannot_be_asked(answering, question, ratio, methods, message):
    with pytest.raises(InputError, match=message):
        answering.ask(str(EXAMPLES[0].path), question, ratio, methods)


def test_one_method_twice_is_asked_once(answering):
    assert len(answering.ask(str(EXAMPLES[0].path), "what is the total?", 0.1, ["uniform", "uniform"]).runs) == 1


def test_methods_of_other_packages_can_be_chosen(monkeypatch):
    from globalcom2.core import methods

    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    methods.register_method(methods.Method("best", "other:best", "summary", "source"))
    labels = [label for label, _ in method_choices()]
    assert labels[:3] == ["globalcom2", "globalcom2, paper", "globalcom2, published"]
    assert {"uniform", "random", "best"} <= set(labels)


def test_visitors_name_no_model_unless_allowed(mini):
    loaded = []
    models = Models("mini", *mini, load=lambda name: loaded.append(name) or mini)
    assert models.get(None)[0] == models.get("  ")[0] == models.get(["x"])[0] == "mini"
    with pytest.raises(InputError, match="model must be 'mini' here, got 'owner/name'"):
        models.get("owner/name")
    models.open_to_others = True
    for name in ("/etc", "../x", "a/../b", "~/x", "a/b/c", ".", "folder"):
        with pytest.raises(InputError, match="a name on the hub"):
            models.get(name)
    assert not loaded


def test_another_model_is_kept_until_the_next(mini, monkeypatch):
    from globalcom2.web import answering as module

    monkeypatch.setattr(module, "_check_public", lambda name: None)
    loaded = []
    models = Models("mini", *mini, load=lambda name: (loaded.append(name), "processor"), open_to_others=True)
    for name in ("a/b", "a/b", "mini", "a/b", "c/d", "a/b"):
        assert models.get(name)[0] == name
    assert loaded == ["a/b", "c/d", "a/b"]


def test_questions_wait_for_each_other(mini, monkeypatch):
    from globalcom2.web import answering as module

    inside, most = [], []

    def slow(*args, **kwargs):
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.05)
        inside.pop()

    monkeypatch.setattr(module, "compare", slow)
    answering = Answering(Models("mini", *mini))
    ask = threading.Thread, (str(EXAMPLES[0].path), "what?", 0.1, ["uniform"])
    threads = [ask[0](target=answering.ask, args=ask[1]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == [1, 1, 1, 1]


def test_examples_are_the_evaluation_sets():
    chosen = {one.number: one for one in EXAMPLES if one.number is not None}
    for theirs in load_examples(EVALUATION_SET, 60):
        if theirs.number in chosen:
            one = chosen.pop(theirs.number)
            assert one.path.read_bytes() == theirs.encoded
            assert (one.question, one.answer) in {(asked.text, asked.answer) for asked in theirs.questions}
    assert not chosen
    assert strip().count("<button") == len(EXAMPLES)


def test_right_answers_are_for_the_very_picture():
    one = EXAMPLES[1]
    assert right_answer(one.picture(), f" {one.question} ") == one.answer
    assert right_answer(EXAMPLES[2].picture(), one.question) is None
    assert right_answer(one.picture(), "what?") is None
    changed = one.picture()
    changed.putpixel((0, 0), (1, 2, 3))
    assert right_answer(changed, one.question) is None


@pytest.mark.parametrize("number", [-1, 99, "0", None, 0.0])
def test_examples_that_are_not_there(number):
    with pytest.raises(InputError, match="an example must be"):
        example(number)
