"""What tokens that leave inside the language model save: closed forms against torch's counter, on the mini model."""

import copy

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from globalcom2 import compress, load_mini
from globalcom2.hf.inside import Drops
from globalcom2.lab.bench import Plan, measure, settings_of
from globalcom2.lab.chat import question_inputs
from globalcom2.lab.comparison import compare
from globalcom2.lab.costs import call_prefill_flops, kv_cache_bytes, tokens_by_layer
from globalcom2.lab.settings import Setting
from globalcom2.lab.settings import settings_of as studied


@pytest.fixture(scope="module")
def mini():
    model, processor = load_mini()
    model.set_attn_implementation("eager")  # the counter misses sdpa on a CPU
    return model, processor


@pytest.fixture(scope="module")
def asked(mini):
    picture = Image.linear_gradient("L").resize((300, 200)).convert("RGB")
    return picture, question_inputs(mini[0].config, mini[1], picture, "How many circles?")


@pytest.mark.parametrize(
    ("settings", "drops"),
    [
        ({"inside": "fastv"}, Drops((2,), 0.5)),
        ({"inside": "fastv", "inside_layer": 1, "inside_share": 0.2}, Drops((1,), 0.2)),
        ({"inside": "pyramiddrop"}, Drops((1, 2, 3), 0.5)),
    ],
    ids=["fastv", "early fastv", "pyramiddrop"],
)
@pytest.mark.parametrize("ratio", [1.0, 0.25])
def test_prefill_of_the_mini_model(mini, asked, settings, drops, ratio):
    model, inputs = mini[0], asked[1]
    with compress(model, ratio, **settings) as compression, FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs, logits_to_keep=1)
    counts = counter.get_flop_counts()
    measured = sum(sum(counts[name].values()) for name in ("LlavaNextForConditionalGeneration.model.language_model",))
    head = 2 * model.config.text_config.hidden_size * model.config.text_config.vocab_size
    visual = compression.report.tokens_after
    text = int((inputs["input_ids"] != model.config.image_token_id).sum())
    assert measured + head == call_prefill_flops(model.config, text + visual, visual, drops)


def test_the_cache_is_as_large_as_estimated(mini, asked):
    model, inputs = mini[0], asked[1]
    with compress(model, 1.0, inside="pyramiddrop") as compression:
        out = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True)
    cache = out.cache if getattr(out, "cache", None) is not None else out.past_key_values
    held = sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))
    text = int((inputs["input_ids"] != model.config.image_token_id).sum())
    visual = compression.report.tokens_after
    tokens = tokens_by_layer(model.config.text_config, text + visual, visual, Drops((1, 2, 3), 0.5))
    assert held == kv_cache_bytes(model.config.text_config, tokens, bytes_per_value=4)


def test_a_comparison_counts_what_is_saved(mini, asked):
    settings = [Setting("globalcom2", 0.5), Setting("globalcom2", 0.5, {"inside": "fastv", "inside_layer": 1})]
    found = compare(*mini, asked[0], "How many circles?", settings, max_new_tokens=1)
    plain, inside = found.runs
    assert plain.visual_tokens == inside.visual_tokens
    drops = Drops((1,), 0.5)
    assert inside.prefill_flops == call_prefill_flops(mini[0].config, inside.prompt_tokens, inside.visual_tokens, drops)
    assert inside.prefill_flops < plain.prefill_flops < found.full.prefill_flops
    read = [inside.visual_tokens, *drops.left(inside.visual_tokens) * 3]
    assert inside.to_dict()["mean_retention"] == pytest.approx(sum(read) / 4 / found.full.visual_tokens)
    assert plain.mean_retention == pytest.approx(plain.visual_tokens / found.full.visual_tokens)


def test_studies_have_tokens_that_leave_inside_alone():
    """A ratio of 1 is alike for all methods, but for settings under which tokens leave inside."""
    methods = ["globalcom2", "uniform", "globalcom2:inside=fastv", "globalcom2:inside=pyramiddrop"]
    assert [setting.label for setting in studied(methods, [1.0])] == [
        "globalcom2", "globalcom2, inside=fastv", "globalcom2, inside=pyramiddrop"
    ]  # fmt: skip
    assert [setting.method for setting in settings_of(methods, [1.0], [1])] == ["all tokens", *methods[2:]]


def test_bench_predicts_what_is_saved(mini):
    model = copy.deepcopy(mini[0])
    settings = settings_of(["globalcom2:inside=fastv"], [1.0, 0.5], [1])
    rows = measure(model, settings, Plan(image=(112, 112), new_tokens=1, rounds=1))
    shares = [row["share_of_flops"] for row in rows]
    assert shares[0] == 1.0
    assert shares[0] > shares[1] > shares[2]
