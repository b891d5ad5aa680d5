"""The mini model in an engine: its answers, its caches, and what it does with input that is not as it should be."""

import json
from dataclasses import replace

import engines
import pytest
import torch
from PIL import Image

from globalcom2 import compress, load_mini
from globalcom2.lab.dataset import load_examples
from globalcom2.mini import EVALUATION_SET, demo_picture

PICTURES = 50
QUESTION = "<s><user><image>what number is on the orange triangle?<assistant>"


@pytest.fixture(scope="module")
def asked():
    """(prompt, picture) of the first question about each of some evaluation pictures."""
    pictures = load_examples(EVALUATION_SET, first=PICTURES)
    return [(f"<s><user><image>{p.questions[0].text}<assistant>", p.image) for p in pictures]


def placeholders(output) -> int:
    return list(output.prompt_token_ids).count(4)


@pytest.mark.parametrize("ratio", [1.0, 0.25, 0.1])
def test_answers_are_those_of_transformers(mini, asked, ratio):
    model, processor = load_mini()
    requests = [engines.request(prompt, [image], ratio) for prompt, image in asked]
    served = engines.answers(mini, requests)
    differ = []
    for (prompt, image), answer in zip(asked, served, strict=True):
        inputs = processor(text=prompt, images=image, return_tensors="pt")
        with torch.no_grad(), compress(model, ratio) as compression:
            out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        new = out[0, inputs["input_ids"].shape[1] :].tolist()
        if ratio < 1.0:
            assert placeholders(answer) == compression.report.tokens_after
        if engines.ids(answer) != new:
            differ.append((prompt, engines.ids(answer), new))
    assert not differ


def test_the_prefix_cache_knows_the_ratio(mini):
    picture = demo_picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT)  # in no other test

    def cached(ratio):
        return engines.answers(mini, [engines.request(QUESTION, [picture], ratio)])[0].num_cached_tokens

    assert cached(0.25) == 0
    assert cached(0.25) > 100
    assert cached(0.2501) == 0  # as many tokens, but not to be told from others'
    assert cached(0.1) == 0
    assert cached(None) > 32  # the engine's own ratio is 0.1
    assert cached(1.0) == 0
    assert cached(1.0) > 500


def test_without_the_ratio_in_the_key_caches_mix_ratios(mini, monkeypatch):
    """Why the key has it: the negative control of the test before."""
    from globalcom2.integrations.vllm import processing

    def stock(self, inputs):
        rest = processing.without_ratio(inputs.hf_processor_mm_kwargs)
        return super(processing.ShortProcessor, self)._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=rest))

    monkeypatch.setattr(processing.ShortProcessor, "_get_mm_hashes", stock)
    picture = demo_picture().transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    first, second = (
        engines.answers(mini, [engines.request(QUESTION, [picture], ratio)])[0] for ratio in (0.25, 0.2501)
    )
    assert first.num_cached_tokens == 0
    assert second.num_cached_tokens > 100


def test_ratios_mix_in_a_batch(mini, asked):
    ratios = (1.0, 0.5, 0.25, 0.1, None, 0.05)
    requests = [
        engines.request(prompt, [image], ratios[i % len(ratios)]) for i, (prompt, image) in enumerate(asked[:12])
    ]
    both = engines.request(
        "<s><user><image><image>how many tags are there?<assistant>", [asked[0][1], asked[1][1]], 0.3
    )
    requests += [both, engines.request("<s><user>how many tags are there?<assistant>", [])]
    together = engines.answers(mini, requests)
    for output, request in zip(together, requests, strict=True):
        mini.reset_prefix_cache()
        alone = engines.answers(mini, [request])[0]
        assert engines.ids(output) == engines.ids(alone)
        assert len(output.prompt_token_ids) == len(alone.prompt_token_ids)


@pytest.mark.parametrize("wrong", [0, -1, 25, 1.5, "much", True, [0.1], float("nan")])
def test_a_wrong_ratio_is_told_and_the_engine_lives_on(mini, wrong):
    with pytest.raises(ValueError, match=r"globalcom2_retention must be"):
        engines.answers(mini, [engines.request(QUESTION, [demo_picture()], wrong)])
    assert engines.answers(mini, [engines.request(QUESTION, [demo_picture()])])


def test_a_ratio_below_the_floor_gets_the_floor(mini):
    low, floor = (
        placeholders(engines.answers(mini, [engines.request(QUESTION, [demo_picture()], ratio)])[0])
        for ratio in (0.001, 0.01)
    )
    assert low == floor


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000), (20000, 20), (33, 1200)])
def test_strips_and_dots(mini, size):
    output = engines.answers(mini, [engines.request(QUESTION, [Image.new("RGB", size, "gray")])])[0]
    assert 1 <= placeholders(output) <= 80


@pytest.mark.parametrize(("per_request", "whole"), [(None, 664), (True, 664), (False, 66)])
def test_profiled_is_the_largest_image_that_a_request_may_ask_for(mini, monkeypatch, per_request, whole):
    processor = mini.llm_engine.renderer.get_mm_processor()
    told = replace(processor.info.options, per_request=per_request)
    monkeypatch.setitem(vars(processor.info), "options", told)
    (place,) = processor.get_dummy_mm_inputs({"image": 1})["mm_placeholders"]["image"]
    assert place.get_num_embeds() == whole
    monkeypatch.setitem(vars(processor.info), "options", replace(told, limit=50))
    (place,) = processor.get_dummy_mm_inputs({"image": 1})["mm_placeholders"]["image"]
    assert place.get_num_embeds() == 50


def test_a_limit_in_tokens_is_that_of_transformers(mini, asked):
    model, processor = load_mini()
    for limit in (40, 300):
        for (prompt, image), answer in zip(
            asked[:6],
            engines.answers(mini, [engines.request(prompt, [image], limit=limit) for prompt, image in asked[:6]]),
            strict=True,
        ):
            inputs = processor(text=prompt, images=image, return_tensors="pt")
            with torch.no_grad(), compress(model, max_visual_tokens=limit) as compression:
                out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
            assert placeholders(answer) == compression.report.tokens_after <= limit
            assert engines.ids(answer) == out[0, inputs["input_ids"].shape[1] :].tolist()


def test_the_prefix_cache_knows_limits(mini):
    picture = demo_picture().transpose(Image.Transpose.ROTATE_90)  # in no other test

    def cached(ratio, limit):
        return engines.answers(mini, [engines.request(QUESTION, [picture], ratio, limit)])[0].num_cached_tokens

    assert cached(None, 166) == 0
    assert cached(0.25, None) == 0  # as many tokens
    assert cached(None, 166) > 100
    assert cached(None, 167) == 0


def test_embeddings_of_images_pass_through():
    from globalcom2.mini import FOLDER

    width = json.loads((FOLDER / "config.json").read_text())["text_config"]["hidden_size"]
    with engines.running(FOLDER, {"enable_mm_embeds": True}, globalcom2_retention=0.1) as engine:
        prompt = {"prompt": QUESTION, "multi_modal_data": {"image": torch.randn(1, 20, width)}}
        assert placeholders(engines.answers(engine, [prompt])[0]) == 20


def test_wrong_settings_are_told_before_anything_is_loaded():
    from globalcom2.mini import FOLDER

    for overrides, message in (
        ({"globalcom2_retention": 10}, "globalcom2_retention must be in"),
        ({"globalcom2_retention": 0.1, "globalcom2_floor": 0.5}, "globalcom2_floor must be at most"),
        ({"globalcom2_retention": 0.1, "globalcom2_method": "globalcom"}, "Did you mean"),
    ):
        with pytest.raises(Exception, match=message), engines.running(FOLDER, **overrides):
            pass
