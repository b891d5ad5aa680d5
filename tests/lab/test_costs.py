"""Closed forms against torch's own counter; eager attention, because the counter misses sdpa on a CPU."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from globalcom2.lab.costs import masked_flops, prefill_flops, projector_flops, tower_flops


def counted(work) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(vocab_size=1000, hidden_size=256, intermediate_size=688, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4),
        LlamaConfig(vocab_size=500, hidden_size=128, intermediate_size=300, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2),
        MistralConfig(vocab_size=700, hidden_size=192, intermediate_size=512, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3, head_dim=16),
    ],
    ids=["llama", "llama grouped", "mistral"],
)  # fmt: skip
@pytest.mark.parametrize("tokens", [512, 37])
def test_prefill(config, tokens):
    kind = MistralForCausalLM if config.model_type == "mistral" else LlamaForCausalLM
    config._attn_implementation = "eager"
    model = kind(config)
    got = counted(lambda: model(torch.zeros(1, tokens, dtype=torch.long), logits_to_keep=1, use_cache=False))
    assert prefill_flops(config, tokens) == pytest.approx(got, rel=1e-5)


def test_masked_is_what_a_prompt_read_word_by_word_never_computes():
    config = LlamaConfig(hidden_size=128, intermediate_size=300, num_hidden_layers=3, num_attention_heads=8)
    tokens = 23
    pairs = sum(key > query for query in range(tokens) for key in range(tokens))
    a_pair = (prefill_flops(config, 2) - 2 * prefill_flops(config, 1) + 2 * 128 * config.vocab_size) / 2
    assert masked_flops(config, tokens) == pairs * a_pair


def test_tower():
    config = CLIPVisionConfig(
        hidden_size=96, intermediate_size=200, num_hidden_layers=3, num_attention_heads=4, image_size=84, patch_size=14
    )
    config._attn_implementation = "eager"
    model = CLIPVisionModel(config)
    assert tower_flops(config, 5) == pytest.approx(counted(lambda: model(torch.zeros(5, 3, 84, 84))), rel=1e-5)


def test_projector(llava):
    model = llava.model
    config = model.config
    module = type(model.model.multi_modal_projector)(config)
    got = counted(lambda: module(torch.zeros(1, 180, config.vision_config.hidden_size)))
    assert projector_flops(config.vision_config, config.text_config, 180) == got


def test_published_figures():
    """LLaVA-NeXT 7B and 13B at 2880 visual tokens: 41.7 and 80.0 TFLOPs in the paper, up to element-wise work."""
    vicuna = {"vocab_size": 32064, "num_key_value_heads": None}
    small = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, **vicuna
    )
    large = LlamaConfig(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40, **vicuna
    )
    assert prefill_flops(small, 2880) / 1e12 == pytest.approx(41.7, abs=0.06)
    assert prefill_flops(small, 288) / 1e12 == pytest.approx(3.8, abs=0.06)
    assert prefill_flops(large, 2880) / 1e12 == pytest.approx(80.0, abs=0.13)
    assert prefill_flops(large, 288) / 1e12 == pytest.approx(7.4, abs=0.06)
