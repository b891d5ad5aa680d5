"""Settings and calls in which visual tokens cannot leave inside the language model: told before any work."""

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

from calls import GREEDY, generate
from globalcom2 import CompressionConfig, InputError, compress
from tiny import picture


@pytest.fixture
def inputs(llava):
    return llava.inputs(["what? <image> well"], [picture(168, 168, 1)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inside": "fastvv"}, "inside must be one of fastv, pyramiddrop.*fastvv"),
        ({"inside_layer": 2}, "inside must be given with inside_layer.*inside='fastv'"),
        ({"inside_share": 0.5}, "inside must be given with inside_share"),
        ({"inside": "pyramiddrop", "inside_layer": 2}, "inside_layer must be left out with inside='pyramiddrop'"),
        ({"inside": "fastv", "inside_layer": 0}, "inside_layer must be an integer from 1 on, got 0"),
        ({"inside": "fastv", "inside_layer": True}, "inside_layer must be an integer"),
        ({"inside": "fastv", "inside_share": 0}, r"inside_share must be in \(0, 1\], got 0"),
        ({"inside": "fastv", "inside_share": 1.5}, r"inside_share must be in \(0, 1\], got 1.5"),
        ({"inside": "fastv", "inside_share": "half"}, r"inside_share must be in \(0, 1\], got 'half'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(InputError, match=message):
        CompressionConfig(**settings)


def test_too_few_layers(tiny):
    with pytest.raises(InputError, match="inside_layer must be less than the 3 layers of this language model, got 3"):
        compress(tiny.model, inside="fastv", inside_layer=3)
    with pytest.raises(InputError, match="inside must be 'fastv' for a language model of fewer than 4 layers"):
        compress(tiny.model, inside="pyramiddrop")


def test_settings_are_kept_and_no_engine_follows_them(tmp_path):
    config = CompressionConfig(0.5, "globalcom2:inside=fastv,inside_layer=3,inside_share=0.25")
    assert (config.inside, config.inside_layer, config.inside_share) == ("fastv", 3, 0.25)
    assert CompressionConfig(0.5, config.method_text) == config
    config.save_pretrained(tmp_path)
    assert CompressionConfig.from_pretrained(tmp_path) == config
    with pytest.raises(
        InputError, match=r"inside and inside_layer and inside_share must be left out for a vLLM engine"
    ):
        config.vllm_overrides()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"cache_implementation": "static"}, "cache_implementation must be 'dynamic' with inside, got 'static'"),
        ({"prefill_chunk_size": 16}, "prefill_chunk_size must be left out with inside, got 16"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens must be left out with inside"),
    ],
)
def test_calls_of_generate(tiny, inputs, more, message):
    with compress(tiny.model, 0.5, inside="fastv") as compression:
        with pytest.raises(InputError, match=message):
            generate(tiny.model, inputs, **more)
        with pytest.raises(InputError, match="assistant_model must be left out"):
            generate(tiny.model, inputs, assistant_model=tiny.model)
        cache = StaticCache(config=tiny.model.config.get_text_config(), max_cache_len=500)
        with pytest.raises(InputError, match="must be a DynamicCache with inside, got StaticCache"):
            generate(tiny.model, inputs, past_key_values=cache)
    assert len(compression.report) == 0


def test_a_cache_that_holds_text_already(tiny, inputs):
    prefix = tiny.inputs(["some words"], None)
    cache = DynamicCache(config=tiny.model.config.get_text_config())
    with torch.no_grad():
        tiny.model(**prefix, past_key_values=cache)
    whole = {name: torch.cat([prefix[name], inputs[name]], 1) for name in ("input_ids", "attention_mask")}
    with (
        compress(tiny.model, 0.5, inside="fastv"),
        pytest.raises(InputError, match="must be empty for a prompt with images"),
    ):
        generate(tiny.model, {**inputs, **whole}, past_key_values=cache)


def test_losses_and_packed_rows(tiny, inputs):
    with compress(tiny.model, 0.5, inside="fastv"):
        with pytest.raises(InputError, match=r"labels must be left out with inside.*Train without"):
            tiny.model(**inputs, labels=inputs["input_ids"])
        length = inputs["input_ids"].shape[1]
        positions = torch.cat([torch.arange(length - 4), torch.arange(4)])[None]
        with pytest.raises(InputError, match="position_ids must be those of one sample per row with inside"):
            tiny.model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"],
                       image_sizes=inputs["image_sizes"], position_ids=positions)  # fmt: skip


def test_gradient_checkpointing(llava, inputs):
    model = copy.deepcopy(llava.model).train()
    for layer in model.get_decoder().layers:
        layer.gradient_checkpointing = True
    with compress(model, 0.5, inside="fastv"), pytest.raises(InputError, match="gradient checkpointing must be off"):
        model(**inputs)


def test_other_kernels(tiny, inputs, monkeypatch):
    text = tiny.model.config.get_text_config()
    with compress(tiny.model, 0.5, inside="fastv"):
        monkeypatch.setattr(text, "_attn_implementation_internal", "flash_attention_2")
        with pytest.raises(
            InputError, match="attn_implementation must be sdpa or eager with inside, got 'flash_attention_2'"
        ):
            generate(tiny.model, inputs)


def test_a_cache_that_somebody_cropped(tiny, inputs):
    with compress(tiny.model, 0.5, inside="fastv"):
        out = tiny.model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        cache = cache_in(out)
        layer = cache.layers[-1]
        layer.keys, layer.values = layer.keys[:, :, :-1], layer.values[:, :, :-1]
        more = torch.cat([out.sequences, torch.tensor([[40]])], 1)
        with pytest.raises(InputError, match="must be as the call with inside='fastv' left it"):
            generate(tiny.model, {"input_ids": more}, past_key_values=cache)


@pytest.mark.parametrize("inside", [None, "fastv"])
def test_a_cache_of_beams_or_filled_again(tiny, inputs, inside):
    """The last layer, whose keys show it, is shorter where tokens have left."""
    with compress(tiny.model, 0.5, inside=inside):
        out = tiny.model.generate(**inputs, **GREEDY, num_beams=2, return_dict_in_generate=True)
        more = torch.cat([out.sequences, torch.tensor([[40]])], 1)
        with pytest.raises(InputError, match="must hold one row per prompt"):
            generate(tiny.model, {"input_ids": more}, past_key_values=cache_in(out))
        out = tiny.model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        more = torch.cat([out.sequences, torch.tensor([[40]])], 1)
        cache = cache_in(out)
        cache.layers[-1].keys = cache.layers[-1].keys + 1.0
        with pytest.raises(InputError, match="reordered or filled again"):
            generate(tiny.model, {"input_ids": more}, past_key_values=cache)


def test_a_cache_that_was_reset_forgets_what_left(tiny, inputs):
    cache = DynamicCache(config=tiny.model.config.get_text_config())
    with compress(tiny.model, 0.5, inside="fastv"):
        generate(tiny.model, inputs, past_key_values=cache)
    for layer in cache.layers:
        layer.keys = layer.values = None
        layer.is_initialized = False
    with compress(tiny.model, 0.5):
        first = generate(tiny.model, inputs, past_key_values=cache)
        more = torch.cat([first, torch.tensor([[40]])], 1)
        found = generate(tiny.model, {"input_ids": more}, past_key_values=cache)
        fresh = tiny.model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        assert torch.equal(found, generate(tiny.model, {"input_ids": more}, past_key_values=cache_in(fresh)))


def cache_in(out):
    return out.cache if getattr(out, "cache", None) is not None else out.past_key_values


def test_calls_without_images_pass_through(tiny, inputs):
    text = tiny.inputs(["some words"], None)
    plain = generate(tiny.model, text)
    with compress(tiny.model, 0.5, inside="fastv") as compression:
        assert torch.equal(generate(tiny.model, text, prompt_lookup_num_tokens=3), plain)
    assert len(compression.report) == 0


def test_a_compiled_model_says_so(tiny, inputs, monkeypatch):
    """Compilers may leave hooks out that came after them; here, somebody else takes them off."""
    from globalcom2 import GlobalCom2Error
    from globalcom2.hf import inside_hooks

    monkeypatch.setattr(inside_hooks.Hook, "__call__", lambda *args: None)
    with compress(tiny.model, 0.5, inside="fastv"), pytest.raises(GlobalCom2Error, match=r"one by one.*compiled"):
        generate(tiny.model, inputs)
