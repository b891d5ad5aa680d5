"""`compare`: answers equal those of the model's own generate; settings are read as the command line has them."""

import pytest
import torch

from families import FAMILIES
from globalcom2 import CompressionConfig, InputError, compress
from globalcom2.lab.chat import chat_prompt
from globalcom2.lab.comparison import Call, compare
from globalcom2.lab.settings import Setting, settings_from, settings_of
from tiny import picture


def test_answers_are_those_of_plain_calls(tiny):
    image, told = picture(168, 168), []
    settings = [Setting("uniform", 0.25), Setting("globalcom2", 0.1, {"layer": -1}), Setting("globalcom2", 1.0)]
    found = compare(
        tiny.model, tiny.processor, image, "what?", settings, max_new_tokens=4, progress=lambda *n: told.append(n)
    )
    inputs = tiny.processor(text=chat_prompt(tiny.processor, "what?"), images=image, return_tensors="pt")

    def plain(**more):
        out = tiny.model.generate(**inputs, max_new_tokens=4, do_sample=False)
        return tiny.processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    assert found.full.answer == found.runs[2].answer == plain()
    assert found.full.visual_tokens == found.runs[2].visual_tokens == 192
    for setting, run in zip(settings[:2], found.runs, strict=False):
        with compress(tiny.model, setting.retention_ratio, setting.method, **setting.options) as compression:
            assert run.answer == plain()
        (entry,) = compression.report
        assert run.visual_tokens == entry.tokens_after
        assert run.prompt_tokens == found.full.prompt_tokens - 192 + entry.tokens_after
        assert run.crop_ratios == entry.crop_ratios
        assert torch.equal(run.entry.kept, entry.kept)
        assert 0 < run.prefill_flops < found.full.prefill_flops
        assert run.tower_flops == found.full.tower_flops > 0
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [row["setting"] for row in found.table()] == [
        "all tokens", "uniform at 0.25", "globalcom2, layer=-1 at 0.1", "globalcom2 at 1",
    ]  # fmt: skip


def test_nothing_is_asked_before_all_is_checked(tiny, monkeypatch):
    monkeypatch.setattr(Call, "full", lambda self: pytest.fail("asked"))
    image = picture(84, 84)
    for question, settings in (
        ("", []),
        ("see <image>", []),
        ("what?", [Setting("uniform", 0.1), Setting("uniform", 0.1, {"alfa": 1})]),
    ):
        with pytest.raises(InputError, match=r"question must be text|got 'alfa'"):
            compare(tiny.model, tiny.processor, image, question, settings)


@pytest.mark.parametrize("family", ["idefics3", "internvl", "minicpmv4_6", "lfm2_vl"])
def test_other_families(family):
    tiny = FAMILIES[family]()
    found = compare(
        tiny.model, tiny.processor, picture(400, 300), "what?", [Setting("uniform", 0.25)], max_new_tokens=2
    )
    (run,) = found.runs
    assert run.visual_tokens == round(0.25 * found.full.visual_tokens)
    assert run.prefill_flops < found.full.prefill_flops


def test_a_processor_without_a_place_for_the_image(tiny, monkeypatch):
    monkeypatch.setattr(tiny.processor, "chat_template", "no picture", raising=False)
    monkeypatch.setattr(
        type(tiny.processor),
        "__call__",
        lambda self, text, images, return_tensors: self.tokenizer(text, return_tensors="pt"),
    )
    with pytest.raises(InputError, match="must have a chat template that gives an image its place"):
        compare(tiny.model, tiny.processor, picture(84, 84), "what?", [])


def test_a_processor_that_counts_the_images_itself(tiny, monkeypatch):
    def counts(self, text, images, return_tensors):
        raise ValueError("Found total 0 <image> tokens\nand 1 images.")

    monkeypatch.setattr(type(tiny.processor), "__call__", counts)
    with pytest.raises(InputError, match=r"got one with no template, .* Found total 0 <image> tokens and 1 images"):
        compare(tiny.model, tiny.processor, picture(84, 84), "what?", [])


def test_settings():
    found = settings_of(["uniform", "globalcom2:alpha=0.3", "uniform"], [1.0, 0.5])
    options = {"alpha": 0.3}
    assert found == [Setting("uniform", 1.0), Setting("uniform", 0.5), Setting("globalcom2", 0.5, options)]
    assert settings_of(["globalcom2:alpha=0.3"], [0.5], "paper")[0].options == {
        "layer": -1,
        "allocation": "softmax",
        "alpha": 0.3,
        "newlines": "counted",
    }
    with pytest.raises(InputError, match="preset must be left out with method 'uniform'"):
        settings_of(["globalcom2", "uniform"], [0.5], "paper")
    config = CompressionConfig(0.3, "globalcom2", score="attention", options={"alpha": 0.2})
    assert settings_from(config, None, None) == [Setting("globalcom2", 0.3, {"score": "attention", "alpha": 0.2})]
    assert settings_from(config, ["uniform"], [0.5, 0.5]) == [Setting("uniform", 0.5, {"score": "attention"})]
