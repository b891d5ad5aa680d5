"""Closed forms against torch's own counter; eager attention, because the counter misses sdpa on a CPU."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3MoeConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.llama4.configuration_llama4 import Llama4Config, Llama4TextConfig, Llama4VisionConfig
from transformers.models.llama4.modeling_llama4 import Llama4VisionModel

from counting import skip_before_5_24
from families import FAMILIES
from families.tagged import TEXT, VISION
from globalcom2 import UnsupportedModelError
from globalcom2.adapters.families import list_models, load_adapter
from globalcom2.core.layout import unpacked
from globalcom2.hf.cache import CACHE
from globalcom2.lab.costs import (
    call_prefill_flops,
    decode_flops,
    kv_cache_bytes,
    masked_flops,
    prefill_flops,
    projector_flops,
    tower_flops,
)
from globalcom2.lab.vision_costs import Image, padded_length, plain_tower, projector_flops_of, vision_cost
from tiny import picture


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


class Parts:
    """Operations of a call's tower, projector and language model, by torch's counter."""

    def __init__(self, model, inputs):
        base = model.base_model
        modules = {
            "tower": getattr(base, "vision_tower", None) or base.vision_model,
            "text": getattr(base, "language_model", None) or base.text_model,
            "head": model.lm_head,
        }
        found, hooks = dict.fromkeys(modules, 0), []
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            for name, module in modules.items():

                def before(*_, name=name):
                    found[name] -= counter.get_total_flops()

                def after(*_, name=name):
                    found[name] += counter.get_total_flops()

                hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
            model.generate(**inputs, max_new_tokens=1, do_sample=False)
        for hook in hooks:
            hook.remove()
        self.tower, self.prefill = found["tower"], found["text"] + found["head"]
        self.projector = counter.get_total_flops() - self.tower - self.prefill


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"llama4"}))
def test_every_family(family):
    """Tower, projector and language model apart; Llama 4 fails by itself in transformers 5.24 and is counted in parts."""
    skip_before_5_24(family)
    tiny = FAMILIES[family]()
    tiny.model.set_attn_implementation("eager")
    inputs = tiny.inputs([f"abc {tiny.tag}"], [picture(400, 300)])
    adapter = load_adapter(family)
    (layout,) = adapter.layouts(tiny.model.base_model, dict(inputs))
    cost = vision_cost(tiny.model.config, layout, padded_length(inputs))
    parts = Parts(tiny.model, inputs)
    assert cost.tower == parts.tower
    assert cost.projector == parts.projector
    assert call_prefill_flops(tiny.model.config, inputs["input_ids"].shape[1]) == parts.prefill
    if adapter.projects_kept_only:
        assert projector_flops_of(tiny.model.config, layout.tower_tokens) == cost.projector


def test_no_supported_family_is_left_out():
    """Those whose images keep their resolution are counted in test_native_costs.py."""
    assert {name for name in list_models() if not load_adapter(name).native} == {*FAMILIES, "minicpmv4_7"}


def eager(config, model):
    model.eval().set_attn_implementation("eager")
    return model


def test_llama4_in_parts():
    """All experts of this small one are active, since transformers computes them all."""
    vision = Llama4VisionConfig(
        **{**VISION, "intermediate_size": 192},
        vision_output_dim=64,
        projector_input_dim=64,
        projector_output_dim=64,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    text = Llama4TextConfig(
        **TEXT, vocab_size=300, pad_token_id=0, head_dim=16, intermediate_size_mlp=80, num_local_experts=2,
        num_experts_per_tok=2, moe_layers=[0, 2],
    )  # fmt: skip
    tower = eager(vision, Llama4VisionModel(vision))
    config = Llama4Config(vision_config=vision, text_config=text)
    cost = vision_cost(config, unpacked((1, 2), (4, 4), thumbnail_last=True))
    assert cost.tower == counted(lambda: tower(torch.zeros(3, 3, 112, 112)))
    assert cost.projector == 2 * 48 * 64 * 64
    model = eager(text, AutoModelForCausalLM.from_config(text))
    ids = torch.zeros(1, 37, dtype=torch.long)
    assert prefill_flops(text, 37) == counted(lambda: model(ids, logits_to_keep=1, use_cache=False))
    text.num_experts_per_tok = 1
    assert (
        prefill_flops(text, 37) == prefill_flops(text, 36) + prefill_flops(text, 1) + 4 * 3 * 32 * 2 * 36 - 2 * 64 * 300
    )


def test_experts_of_qwen3():
    config = Qwen3MoeConfig(
        **TEXT, vocab_size=300, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48,
        decoder_sparse_step=2, mlp_only_layers=[],
    )  # fmt: skip
    config._experts_implementation = "eager"  # the counter does not know the grouped kernel
    model = eager(config, AutoModelForCausalLM.from_config(config))
    ids = torch.arange(37)[None]
    assert prefill_flops(config, 37) == counted(lambda: model(ids, logits_to_keep=1, use_cache=False))


def test_siglips_head_is_counted_where_it_is_computed():
    config = SiglipVisionConfig(**VISION)
    model = eager(config, SiglipVisionModel(config))
    view = Image(SimpleNamespace(vision_config=config), unpacked((1, 1), (4, 4), thumbnail_last=True), 2, None)
    assert plain_tower(view) == counted(lambda: model(torch.zeros(2, 3, 112, 112)))


@pytest.mark.parametrize("family", ["llava_next", "lfm2_vl", "minicpmv4_6", "cohere2_vision"])
def test_caches(family):
    """Bytes of what a call leaves behind: keys, values, and the states of recurrent layers, which do not grow."""
    tiny = FAMILIES[family]()
    inputs = tiny.inputs([f"abc {tiny.tag}"], [picture(300, 300)])
    out = tiny.model.generate(**inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True)
    held = sum(tensor.numel() for layer in getattr(out, CACHE).layers for tensor in tensors_of(layer))
    text = tiny.model.config.get_text_config()
    assert kv_cache_bytes(text, inputs["input_ids"].shape[1], 4) == 4 * held


def tensors_of(layer):
    for value in vars(layer).values():
        for item in (
            value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        ):
            if isinstance(item, torch.Tensor) and item.ndim > 2:
                yield item


def test_a_step_costs_its_weights_and_its_keys():
    config = LlamaConfig(hidden_size=128, intermediate_size=300, num_hidden_layers=3, num_attention_heads=8)
    model = eager(config, LlamaForCausalLM(config))
    ids = torch.zeros(1, 20, dtype=torch.long)
    out = model(ids, use_cache=True)
    got = counted(lambda: model(ids[:, :1], **{CACHE: getattr(out, CACHE)}, logits_to_keep=1))
    assert decode_flops(config, 20) == pytest.approx(got, rel=1e-4)


def test_what_is_not_known_is_refused():
    config = LlamaConfig()
    config.model_type = "gpt_oss"
    with pytest.raises(UnsupportedModelError, match=r"known language model .*got 'gpt_oss'"):
        prefill_flops(config, 10)
    other = SimpleNamespace(model_type="another")
    with pytest.raises(UnsupportedModelError, match=r"known vision tower .*got one of 'another'"):
        vision_cost(other, unpacked((1, 1), (4, 4), thumbnail_last=True))


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
