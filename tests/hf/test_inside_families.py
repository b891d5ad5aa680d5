"""Which families can lose visual tokens inside their language models, and what the others say."""

import copy

import pytest
import torch
from transformers import AutoConfig, LlavaNextForConditionalGeneration, MistralConfig, Qwen3Config

from families import FAMILIES
from globalcom2 import UnsupportedModelError, compress
from independent import reports_keep
from inside_by_hand import row_of, run_by_hand
from tiny import Tiny, finished, picture

SERVED = (
    "llava_next", "llava_next_video", "llava_onevision", "idefics3", "smolvlm", "internvl", "qianfan_ocr", "got_ocr2",
    "ovis2",
)  # fmt: skip
REFUSED = {
    "granite4_vision": "visual features in several layers",
    "aya_vision": "sliding_attention",
    "cohere2_vision": "sliding_attention",
    "lfm2_vl": "conv",
    "minicpmv4_6": "linear_attention",
    "step3p7": "sliding_attention",
}


def compare_with_hand(tiny):
    """Two rows of two lengths, one drop, logits against those of tokens removed by hand."""
    inputs = tiny.inputs(
        [f"what? {tiny.tag} well", f"{tiny.tag} and so on"], [picture(200, 300, 1), picture(160, 100, 2)]
    )
    with compress(tiny.model, 0.5, inside="fastv", inside_layer=1) as compression, torch.no_grad():
        ours = tiny.model(**inputs).logits
    keep = reports_keep(compression)
    assert compression.report.tokens_inside[0] < compression.report.tokens_after
    for row in range(2):
        embeds, visual = row_of(tiny.model, inputs, row, keep)
        theirs = run_by_hand(tiny.model, embeds, visual, (1,), 0.5).logits
        torch.testing.assert_close(ours[row, -len(theirs) :], theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", SERVED)
def test_a_family_equals_tokens_removed_by_hand(family):
    compare_with_hand(FAMILIES[family]())


@pytest.mark.parametrize("kind", [MistralConfig, Qwen3Config])
def test_other_language_models_of_llava_next(llava, kind):
    config = copy.deepcopy(llava.model.config)
    names = ("vocab_size", "pad_token_id", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "max_position_embeddings")  # fmt: skip
    text = {name: getattr(config.text_config, name) for name in names}
    config.text_config = kind(**text, head_dim=32, sliding_window=None)
    model = finished(LlavaNextForConditionalGeneration(config), llava.processor.tokenizer)
    compare_with_hand(Tiny(model, llava.processor, llava.tag))


def test_a_sliding_window_is_refused(llava):
    config = copy.deepcopy(llava.model.config)
    config.text_config = MistralConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        sliding_window=64,
    )
    with pytest.raises(UnsupportedModelError, match=r"inside must be left out.*sliding_attention"):
        compress(LlavaNextForConditionalGeneration(config), inside="fastv")


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_cannot_says_why(family):
    tiny = FAMILIES[family]()
    with pytest.raises(UnsupportedModelError, match=rf"inside must be left out for this {family}.*{REFUSED[family]}"):
        compress(tiny.model, 0.5, inside="fastv")


def test_every_family_is_served_or_refused():
    # Llama 4 has chunked attention; transformers 5.24 cannot run it, see families/tagged.py.
    assert {*SERVED, *REFUSED, "llama4"} == set(FAMILIES)


def test_an_unknown_language_model_is_refused(llava):
    config = copy.deepcopy(llava.model.config)
    config.text_config = AutoConfig.for_model(
        "stablelm", vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=r"language model \(stablelm\)"):
        compress(LlavaNextForConditionalGeneration(config), inside="fastv")
