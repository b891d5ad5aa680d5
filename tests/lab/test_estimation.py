"""`estimate` against the paper's printed figures and against what a compressed call really does."""

import json
import warnings

import pytest
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING

from command import call
from counting import skip_before_5_24
from families import FAMILIES
from globalcom2 import InputError, UnsupportedModelError, compress, estimate
from globalcom2.lab.costs import projector_flops
from globalcom2.lab.cutting import needs_processor
from globalcom2.lab.estimates import estimate_costs, named_configs, paper_megabytes, parse_size, weight_bytes
from tiny import picture

RATIOS = [1.0, 0.75, 0.5, 0.25, 0.1]
# GlobalCom2, efficiency tables of March 2025: TFLOPs and KV cache in MB at the five ratios.
PAPER = {
    "llava-next-7b": ([41.7, 30.4, 19.7, 9.6, 3.8], [1536.0, 1126.4, 755.0, 377.0, 151.0]),
    "llava-next-13b": ([80.0, 58.7, 38.3, 18.7, 7.4], [2457.6, 1843.2, 1228.8, 590.0, 236.0]),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_tables(name):
    rows = estimate_costs(named_configs()[name], (672, 672), RATIOS, convention="paper")
    tflops, cache = PAPER[name]
    assert [row["prefill_flops"] / 1e12 for row in rows] == pytest.approx(tflops, abs=0.06)
    assert [row["kv_cache_mb_as_printed"] for row in rows] == cache
    assert rows[0]["left_out_flops"] / 1e12 == pytest.approx(
        {"llava-next-7b": 2.030, "llava-next-13b": 2.091}[name], abs=0.001
    )
    assert rows[-1]["share_of_whole"] == pytest.approx(
        {"llava-next-7b": 0.133, "llava-next-13b": 0.115}[name], abs=0.0006
    )


@pytest.mark.parametrize("size", [(168, 168), (400, 100), (64, 90)])
@pytest.mark.parametrize("ratio", [1.0, 0.3])
def test_a_whole_call_against_torchs_counter(tiny, size, ratio):
    """Tower, projector, prefill: everything that one compressed forward multiplies."""
    model = tiny.model
    model.set_attn_implementation("eager")
    inputs = tiny.inputs(["abc <image>"], [picture(*size)])
    text = int((inputs["input_ids"] != model.config.image_token_id).sum())
    with compress(model, ratio, likeness=0.0) as compression, FlopCounterMode(display=False) as counter:
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    model.set_attn_implementation("sdpa")
    row = estimate_costs(model.config, size, [ratio], text_tokens=text)[0]
    total = row["total_flops"]
    if ratio < 1.0:  # the estimate takes kept newlines for projected tokens
        entry = compression.report[0]
        vision, text_config = model.config.vision_config, model.config.text_config
        total -= projector_flops(vision, text_config, int(entry.keep.newlines.sum()))
    # What the count has on top: the tapped row, under a hundredth of this tiny tower.
    extra = counter.get_total_flops() - total
    assert 0 <= extra <= 0.01 * row["tower_flops"]
    if ratio == 1.0:
        assert extra == 0


class Ready:
    """A processor of the tests as a hub's: with a chat template, or with a prompt of its own."""

    def __init__(self, tiny):
        self.tiny, self.own = tiny, tiny.tag == "<img><imgpad></img>"  # GOT-OCR 2 asks its one question by itself
        self.chat_template = None if self.own else "a template"

    def apply_chat_template(self, messages, add_generation_prompt):
        return f"abc {self.tiny.tag}"

    def __call__(self, images, text="abc <img><imgpad></img>", return_tensors="pt"):
        return self.tiny.inputs([text], [images])


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"llama4"}))
def test_the_closed_form_of_every_family(family):
    """From the configuration and the processor alone, what a call has and computes."""
    skip_before_5_24(family)
    tiny = FAMILIES[family]()
    tiny.model.set_attn_implementation("eager")
    inputs = tiny.inputs([f"abc {tiny.tag}"], [picture(400, 300)])
    text = int((inputs["input_ids"] != tiny.model.config.image_token_id).sum())
    with FlopCounterMode(display=False) as counter:
        tiny.model.generate(**inputs, max_new_tokens=1, do_sample=False)
    processor = Ready(tiny) if needs_processor(tiny.model.config) else None
    whole, part = estimate_costs(tiny.model.config, (400, 300), [1.0, 0.25], text_tokens=text, processor=processor)
    assert whole["prompt_tokens"] == inputs["input_ids"].shape[1]
    assert whole["total_flops"] == pytest.approx(counter.get_total_flops(), rel=1e-5)
    with compress(tiny.model, 0.25) as compression, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # grids that pixels do not tell
        tiny.model.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert part["visual_tokens"] == compression.report.tokens_after


def test_a_processor_is_asked_for_where_it_decides():
    tiny = FAMILIES["internvl"]()
    with pytest.raises(InputError, match="a processor must be given for internvl"):
        estimate_costs(tiny.model.config, (400, 300), [0.1])


def test_a_folder_with_the_configuration_alone(capsys, tmp_path):
    """Enough for the LLaVA line; elsewhere the error says what is missing."""
    FAMILIES["llava_onevision"]().model.config.save_pretrained(tmp_path / "whole")
    code, out, err = call(capsys, "estimate", "--model", str(tmp_path / "whole"), "--image", "400x300", "--json")
    assert code == 0, err
    assert json.loads(out)["rows"][0]["visual_tokens"] == 153
    FAMILIES["internvl"]().model.config.save_pretrained(tmp_path / "part")
    code, _, err = call(capsys, "estimate", "--model", str(tmp_path / "part"))
    assert code == 2
    assert "model must come with its processor's files" in err


def test_a_checkpoint_with_its_processor(capsys, tmp_path):
    tiny = FAMILIES["aya_vision"]()
    tiny.processor.chat_template = "{% for m in messages %}<image>{% endfor %}"
    tiny.model.config.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    code, out, err = call(capsys, "estimate", "--model", str(tmp_path), "--image", "400x300", "--json")
    assert code == 0, err
    assert json.loads(out)["rows"][0]["visual_tokens"] == 112


def test_weights_are_counted_on_meta(tiny):
    assert weight_bytes(tiny.model.config, 4) == 4 * sum(p.numel() for p in tiny.model.parameters())


def test_estimate_takes_names_configurations_and_models(tiny):
    rows = estimate("llava-next-7b", "672x672", [1.0, 0.1])
    assert rows == estimate_costs(named_configs()["llava-next-7b"], (672, 672), [1.0, 0.1])
    assert estimate(tiny.model, (168, 168)) == estimate(tiny.model.config, "168x168")
    assert estimate("mini", ratios=[0.5], text_tokens=7)[0]["prompt_tokens"] == 332 + 7
    with pytest.raises(InputError, match="Did you mean 'mini'"):
        estimate("minni")


@pytest.mark.parametrize("image", [(100_000, 100_000), (1, 1)])
def test_a_picture_that_no_model_is_given(tiny, image):
    """Refused before one of that size is made for a processor."""
    with pytest.raises(InputError, match="image must"):
        estimate(tiny.model.config, image)
    with pytest.raises(InputError, match="image must"):
        parse_size(f"{image[0]}x{image[1]}")


def test_a_configuration_that_makes_no_model():
    """transformers' own defaults of these two make none."""
    with pytest.raises(InputError, match="one of which transformers can make a aya_vision model"):
        weight_bytes(CONFIG_MAPPING["aya_vision"]())
    with pytest.raises(UnsupportedModelError, match=r"downsample_rate must be a fraction .* got None"):
        estimate(CONFIG_MAPPING["granite4_vision"]())


def test_sizes():
    assert parse_size("640x480") == (640, 480)
    assert parse_size(" 640 X 480 ") == (640, 480)
    for wrong in ("640", "0x10", "ax3", "-4x4"):
        with pytest.raises(InputError, match="WIDTHxHEIGHT"):
            parse_size(wrong)
    with pytest.raises(InputError, match="Did you mean 'paper'"):
        estimate_costs(named_configs()["llava-next-7b"], (10, 10), [0.1], convention="papers")


def test_units_of_the_paper():
    assert paper_megabytes(1_509_949_440) == 1536.0
    assert paper_megabytes(150_994_944) == 151.0


def test_command(capsys):
    code, out, err = call(capsys, "estimate", "--retention", "1", "--retention", "0.1", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert {"model", "image", "convention", "rows"} <= set(result)
    keys = {
        "retention_ratio",
        "visual_tokens",
        "tower_flops",
        "projector_flops",
        "prefill_flops",
        "total_flops",
        "kv_cache_bytes",
    }
    assert all(keys <= set(row) for row in result["rows"])
    assert [row["visual_tokens"] for row in result["rows"]] == [2928, 293]
    code, out, _ = call(capsys, "estimate", "--convention", "paper", "--model", "mini", "--image", "336x336")
    assert code == 0
    assert "ours" in out
    for arguments, message in (
        (["--image", "big"], "WIDTHxHEIGHT"),
        (["--retention", "25"], "0.25"),
        (["--model", "nope"], "got 'nope'"),
    ):
        code, out, err = call(capsys, "estimate", *arguments)
        assert (code, out) == (2, "")
        assert message in err
