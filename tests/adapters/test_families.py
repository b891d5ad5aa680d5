"""One matrix for all families: whatever the packing, tags and containers, a compressed call is simply a shorter prompt."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from families import FAMILIES
from families.native import NATIVE
from families.native_more import MORE
from families.native_omni import OMNI
from globalcom2 import InputError, compress
from globalcom2.adapters.families import UNSUPPORTED, get_family, list_models
from globalcom2.adapters.tables import markdown_tables
from globalcom2.core.scores import SCORE_TYPES
from globalcom2.errors import UnsupportedModelError
from globalcom2.lab import answers
from independent import cut_call, reports_keep
from tiny import footprint, picture

SIZES = [(168, 168), (60, 200), (400, 100)]  # width, height


@functools.cache
def built(name):
    tiny = FAMILIES[name]()
    # transformers itself adds hooks and attributes on a model's first call.
    tiny.model.generate(**tiny.inputs([f"{tiny.tag} a"], [picture(90, 90)]), max_new_tokens=2)
    return tiny


@pytest.fixture(params=list(FAMILIES))
def family(request):
    tiny = built(request.param)
    before = footprint(tiny.model)
    yield tiny
    assert footprint(tiny.model) == before, "the model was left patched"


def prompts(tiny):
    """(texts, images per text): two images of different sizes, one, none, a picture smaller than a view."""
    tag = tiny.tag
    images = [[picture(*SIZES[0], 1), picture(*SIZES[1], 2)], [picture(*SIZES[2], 3)], [], [picture(30, 30, 4)]]
    return [f"a {tag} b {tag} c", f"look: {tag}?", "no picture here", f"{tag} tiny"], images


def batch(tiny):
    texts, images = prompts(tiny)
    return tiny.inputs(texts, [image for row in images for image in row])


def generate(tiny, inputs, **kwargs):
    options = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    return tiny.model.generate(**inputs, **{**options, **kwargs})


def test_ratio_one_is_the_unpatched_model(family):
    inputs = batch(family)
    plain = generate(family, inputs)
    with compress(family.model, 1.0):
        kept = generate(family, inputs)
    assert torch.equal(kept.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, plain.logits, strict=True))


@pytest.mark.parametrize("ratio", [0.1, 0.4])
def test_equal_to_cut_embeddings(family, ratio):
    inputs = batch(family)
    with compress(family.model, ratio) as compression:
        short = generate(family, inputs)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(short.sequences[:, :length], inputs["input_ids"])  # the caller's prompt is restored
    report = compression.report
    assert 0 < report.tokens_after < report.tokens_before
    assert report.tokens_before == int((inputs["input_ids"] == family.model.config.image_token_id).sum())
    by_hand = generate(family, cut_call(family.model, inputs, reports_keep(compression)))
    new = short.sequences[:, length:]
    assert torch.equal(new, by_hand.sequences[:, -new.shape[1] :])
    torch.testing.assert_close(torch.stack(short.logits), torch.stack(by_hand.logits), atol=2e-5, rtol=1e-5)


def test_a_mixed_batch_equals_row_by_row(family):
    texts, images = prompts(family)
    inputs = batch(family)
    with compress(family.model, 0.3):
        together = generate(family, inputs)
        for row, (text, own) in enumerate(zip(texts, images, strict=True)):
            alone = generate(family, family.inputs([text], own))
            for a, b in zip(together.logits, alone.logits, strict=True):
                # Padding alone moves the logits of the unpatched MiniCPM-V 4.6 by 7e-5: its recurrent layers go in chunks.
                torch.testing.assert_close(a[row], b[0], atol=1e-4, rtol=1e-5)


def test_beams_equal_row_by_row(family):
    texts, images = prompts(family)
    with compress(family.model, 0.3):
        together = generate(family, batch(family), num_beams=3, max_new_tokens=4)
        for row, (text, own) in enumerate(zip(texts, images, strict=True)):
            alone = generate(family, family.inputs([text], own), num_beams=3, max_new_tokens=4)
            assert torch.equal(together.sequences[row, -4:], alone.sequences[0, -4:])


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.25, 0.5])
def test_totals_do_not_depend_on_content(family, ratio):
    totals = set()
    for seed in range(12):
        inputs = family.inputs([f"{family.tag} a"], [picture(300, 200, seed)])
        with compress(family.model, ratio) as compression:
            generate(family, inputs, max_new_tokens=1)
        totals.add(compression.report.tokens_after)
    assert len(totals) == 1


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_the_only_textured_corner_gets_the_largest_budget(family, corner):
    """Catches thumbnails taken from the wrong place and crops in another order; grids have tests of their own."""
    width, height = 360, 240
    pixels = np.full((height, width, 3), 128, np.uint8)
    y, x = corner[0] * height * 2 // 3, corner[1] * width * 2 // 3
    noise = np.random.default_rng(0).integers(0, 256, (height // 3, width // 3, 3), dtype=np.uint8)
    pixels[y : y + height // 3, x : x + width // 3] = noise
    inputs = family.inputs([f"{family.tag} a"], [Image.fromarray(pixels)])
    with compress(family.model, 0.25, score="similarity", temperature=1.0, newlines="counted") as compression:
        generate(family, inputs, max_new_tokens=1)
    image = compression.report[0]
    rows, cols = image.grid
    assert rows > 1
    assert cols > 1
    assert image.layout.known_grid
    assert int(np.argmax(image.crop_ratios)) == corner[0] * (rows - 1) * cols + corner[1] * (cols - 1)


@pytest.mark.parametrize("score", SCORE_TYPES)
def test_every_score_keeps_the_budget(family, score):
    inputs = batch(family)
    try:
        compression = compress(family.model, 0.2, score=score)
    except UnsupportedModelError as error:
        if "Pass score='similarity'" not in str(error):
            raise
        return  # a tower without attention to tap, which says what to do
    with compression:
        generate(family, inputs, max_new_tokens=1)
    with compress(family.model, 0.2, "uniform") as uniform:
        generate(family, inputs, max_new_tokens=1)
    assert compression.report.tokens_after == uniform.report.tokens_after


def test_many_questions_about_one_picture(family, monkeypatch):
    """The picture's prompt is prefilled once; answers equal those of separate calls."""
    tag = family.tag
    monkeypatch.setattr(answers, "chat_prompt", lambda _, question: f"{tag} {question}")
    images, questions = [picture(168, 168, 1), picture(168, 168, 2)], [["ab?", "cde"], ["x", "yz"]]
    arguments = (family.model, family.processor, images, questions, 4)
    if family.model.config.model_type in ("got_ocr2", "qianfan_ocr"):  # their processors do not tell the tag
        with pytest.raises(InputError, match="Ask one question per call of generate instead"):
            answers.answer_questions(*arguments)
        return
    with compress(family.model, 0.3):
        if family.model.config.model_type in ("lfm2_vl", "minicpmv4_6"):  # padding would run through recurrent layers
            with pytest.raises(InputError, match="Ask about one image at a time"):
                answers.answer_questions(*arguments)
            alone = [
                answers.answer_questions(*arguments[:2], [i], [q], 4) for i, q in zip(images, questions, strict=True)
            ]
            found = [one.texts[0] for one in alone]
        else:
            found = answers.answer_questions(*arguments).texts
        for image, asked, given in zip(images, questions, found, strict=True):
            for question, answer in zip(asked, given, strict=True):
                inputs = family.inputs([f"{tag} {question}"], [image])
                new = family.model.generate(**inputs, max_new_tokens=4, do_sample=False)
                alone = new[:, inputs["input_ids"].shape[1] :]
                assert family.processor.batch_decode(alone, skip_special_tokens=True)[0].strip() == answer


def test_the_matrix_and_the_models_page_have_every_family():
    assert sorted([*FAMILIES, *NATIVE, *MORE, *OMNI, "minicpmv4_7"]) == list_models()
    page = Path(__file__).parents[2] / "docs" / "models.md"
    assert page.read_text() == markdown_tables() + "\n"


@pytest.mark.parametrize("model_type", sorted(UNSUPPORTED))
def test_unsupported_families_say_why(model_type):
    with pytest.raises(UnsupportedModelError, match="got model_type") as error:
        get_family(model_type)
    assert UNSUPPORTED[model_type] in str(error.value)
    assert model_type not in list_models()
