"""The native mini: an ordinary model that really answers, at its own resolution, with all tokens and with some."""

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from globalcom2 import InputError, compress, load_mini
from globalcom2.hf.loading import load_config, load_processor
from globalcom2.lab.answers import answer_questions
from globalcom2.lab.chat import chat_prompt
from globalcom2.lab.dataset import load_examples, own_examples
from globalcom2.lab.estimates import estimate
from globalcom2.mini import DEMO_QUESTION, EVALUATION_SET, NATIVE_FOLDER, NATIVE_QUESTIONS, demo_picture

# Read off the demo picture by eye: its tags, and in which cells of 16 px the named ones are.
ANSWERS = {
    DEMO_QUESTION: "29",
    "how many tags are there?": "5",
    "what color is the star?": "green",
    "is there a red circle?": "no",
    "where is the orange triangle?": "17 16",
}
TOKENS = 21 * 21  # 336 px, 16 px a token


@pytest.fixture(scope="module")
def mini():
    torch.set_num_threads(1)
    return load_mini("native")


def asked(processor, question):
    return processor(text=chat_prompt(processor, question), images=demo_picture(), return_tensors="pt")


def test_is_an_ordinary_model_of_at_most_12_mb(mini):
    model, processor = mini
    assert type(model) is Qwen2_5_VLForConditionalGeneration
    assert isinstance(processor, Qwen2_5_VLProcessor)
    assert (model.training, model.dtype) == (False, torch.float32)
    assert sum(file.stat().st_size for file in NATIVE_FOLDER.iterdir()) <= 12 * 2**20
    assert type(load_processor("mini-native")) is type(processor)
    assert load_config("mini-native").model_type == model.config.model_type
    inputs = asked(processor, "where is the star?")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == TOKENS
    assert processor.tokenizer.unk_token_id not in inputs["input_ids"]


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match=r"name must be one of native, tiled, got 'nativ'. Did you mean 'native'"):
        load_mini("nativ")
    with pytest.raises(InputError, match=r"must be one of mini, mini-native, got 'mini-nativ'"):
        own_examples("mini-nativ")


@pytest.mark.parametrize(("ratio", "options"), [(1.0, {}), (0.25, {"guide": "pooled"}), (0.25, {"guide": "thumbnail"})])
def test_the_demo_picture_is_read_with_all_tokens_and_with_a_quarter(mini, ratio, options):
    model, processor = mini
    with compress(model, ratio, **options) as compression:
        (said,) = answer_questions(model, processor, [demo_picture()], [list(ANSWERS)], 8).texts
    right = sum(own == wanted for own, wanted in zip(said, ANSWERS.values(), strict=True))
    assert right == len(ANSWERS) if ratio == 1 else right >= len(ANSWERS) - 1
    assert [int(image.kept.sum()) for image in compression.report.images] == ([] if ratio == 1 else [TOKENS // 4])


def test_places_need_rows_and_columns(mini):
    """With the positions of a plain line, forced by hand, the answer is another place."""
    model, processor = mini
    question = "where is the orange triangle?"
    inputs = asked(processor, question)
    end = inputs["input_ids"].shape[1]
    words = processor.tokenizer(ANSWERS[question], add_special_tokens=False, return_tensors="pt").input_ids
    inputs["input_ids"] = torch.cat([inputs["input_ids"], words], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()
    line = torch.arange(end + words.shape[1]).expand(3, 1, -1)
    found = {}
    for name, positions in (("own", None), ("line", line)):
        logits = model(**inputs, position_ids=positions, use_cache=False).logits
        found[name] = logits[:, end - 1 : -1].argmax(-1).equal(words)
    assert found == {"own": True, "line": False}


def test_the_first_pictures_of_its_own_questions(mini):
    """The same pictures and questions as the tiled mini's, and places, most of them answered."""
    pictures = own_examples("mini-native", 2)
    for own, theirs in zip(pictures, load_examples(EVALUATION_SET, 2), strict=True):
        kinds = [question.kind for question in own.questions]
        assert own.encoded == theirs.encoded
        assert own.questions[: len(theirs.questions)] == theirs.questions
        assert set(kinds[len(theirs.questions) :]) <= {"where"}
    right = many = 0
    for own in pictures:
        texts = [question.text for question in own.questions]
        (said,) = answer_questions(*mini, [own.image], [texts], 8).texts
        right += sum(a == question.answer for a, question in zip(said, own.questions, strict=True))
        many += len(texts)
    assert right >= 0.9 * many


def test_questions_need_their_pictures(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    some = parquet.read_table(EVALUATION_SET).slice(0, 8)
    parquet.write_table(some, tmp_path / "one.parquet")
    with pytest.raises(InputError, match="must have the pictures that are asked about, got no picture 1"):
        load_examples(NATIVE_QUESTIONS, pictures=tmp_path / "one.parquet")
    with pytest.raises(InputError, match="with the columns picture, image, kind"):
        load_examples(NATIVE_QUESTIONS)


def test_is_estimated_by_the_limits_of_its_processor():
    (row,) = estimate("mini-native", "672x672", ratios=[0.25], text_tokens=0)
    assert row["prompt_tokens"] == 28 * 28 // 4  # read at 448 px, the largest it takes
