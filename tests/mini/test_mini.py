"""The mini model: an ordinary model and processor that really answer, offline."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

from globalcom2 import compress, load_mini
from globalcom2.lab.chat import chat_prompt
from globalcom2.lab.dataset import load_examples
from globalcom2.lab.evals import evaluate, settings_of
from globalcom2.mini import DEMO_QUESTION, EVALUATION_SET, FOLDER, demo_picture

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "mini-eval.json"


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
        assert processor.decode(out[0, length:], skip_special_tokens=True).strip() == "29"


def test_the_tokenizer_keeps_words_and_numbers_apart(mini):
    tokens = mini[1].tokenizer
    for text in ("what number is on the red circle?", "blue star 40, white square 99"):
        ids = tokens(text, add_special_tokens=False).input_ids
        assert tokens.unk_token_id not in ids
        assert tokens.decode(ids).strip() == text
    asked = tokens("What COLOUR is  the star ?", add_special_tokens=False).input_ids
    assert tokens.decode(asked).strip() == "what color is the star?"
    assert tokens.unk_token_id in tokens("banana", add_special_tokens=False).input_ids


def committed():
    return json.loads(RESULTS.read_text())["runs"]


def test_tables_are_made_from_the_committed_results():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    found = []
    for page in tables.PAGES:
        text = (ROOT / page).read_text()
        assert tables.filled(text) == text, f"run: python benchmarks/tables.py ({page})"
        found += [name for _, name, _ in tables.BLOCK.findall(text)]
    assert set(found) == set(tables.TABLES)


def test_published_answers_come_out_again(mini):
    """The first pictures of the set: the committed answers are this model's."""
    torch.set_num_threads(1)
    pictures = load_examples(EVALUATION_SET, 24)
    rows = evaluate(*mini, pictures, settings_of(["globalcom2", "uniform"], [0.1]))
    for row in rows:
        (known,) = [r for r in committed() if all(r[k] == row[k] for k in ("method", "retention_ratio", "options"))]
        differing = sum(a != b for a, b in zip(row["right"], known["right"][: len(row["right"])], strict=True))
        assert differing <= 2, row["method"]  # ties may fall otherwise on another processor


def test_the_weights_have_the_names_of_published_checkpoints():
    """vLLM without the plugin reads these alone."""
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        towers = [name for name in weights.keys() if name.startswith("vision_tower.")]  # noqa: SIM118 - no mapping
    assert towers
    assert all(name.startswith("vision_tower.vision_model.") for name in towers)
