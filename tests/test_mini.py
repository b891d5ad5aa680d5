"""The mini model: an ordinary model and processor that really answer, offline."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

from globalcom2 import compress, load_mini
from globalcom2.comparison import chat_prompt
from globalcom2.mini import DEMO_QUESTION, FOLDER, demo_picture

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "mini-held-out.json"
TRAINING = ROOT / "training" / "mini"


@pytest.fixture(scope="module")
def mini():
    return load_mini()


def test_is_an_ordinary_model_of_at_most_20_mb(mini):
    model, processor = mini
    assert type(model) is LlavaNextForConditionalGeneration
    assert type(processor) is LlavaNextProcessor
    assert not model.training
    assert model.dtype == torch.float32
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 20 * 2**20


def test_demo_question_is_answered_with_all_tokens_and_with_a_tenth(mini):
    model, processor = mini
    inputs = processor(text=chat_prompt(processor, DEMO_QUESTION), images=demo_picture(), return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    for ratio in (1.0, 0.1):
        with compress(model, ratio):
            out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        assert processor.decode(out[0, length:], skip_special_tokens=True).strip() == "22"


def test_the_tokenizer_keeps_words_and_numbers_apart(mini):
    tokens = mini[1].tokenizer
    for text in ("what number is on the red circle?", "blue star 40, white square 99"):
        ids = tokens(text, add_special_tokens=False).input_ids
        assert tokens.unk_token_id not in ids
        assert tokens.decode(ids).strip() == text
    asked = tokens("What COLOUR is  the star ?", add_special_tokens=False).input_ids
    assert tokens.decode(asked).strip() == "what color is the star?"
    assert tokens.unk_token_id in tokens("banana", add_special_tokens=False).input_ids


def test_tables_are_made_from_the_committed_result():
    sys.path.insert(0, str(TRAINING))
    from evaluate import markdown_table

    table = markdown_table(json.loads(RESULTS.read_text()))
    for text in (ROOT / "README.md", FOLDER.parent / "MODEL_CARD.md"):
        assert table in text.read_text()


def test_published_figures_hold_on_a_sample(mini):
    """A few of the held-out pictures again: the committed accuracy is not from another model."""
    sys.path.insert(0, str(TRAINING))
    from evaluate import questions, score

    torch.set_num_threads(1)
    asked = list(questions(30, 3))
    random.Random(0).shuffle(asked)
    run = score(*mini, asked, "globalcom2", 1.0)
    committed = next(r for r in json.loads(RESULTS.read_text())["runs"] if r["retention_ratio"] == 1.0)
    assert abs(run["accuracy"] - committed["accuracy"]) < 0.15
    assert run["accuracy"] >= 0.6
    assert run["kinds"]["read"] >= 0.4
