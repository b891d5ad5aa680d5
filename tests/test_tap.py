"""The tapped row against eager attention of the same layer."""

import pytest
import torch

from globalcom2.adapters import tap
from globalcom2.adapters.llava_next import LlavaNextAdapter
from globalcom2.errors import InputError
from tiny import llava_next, picture


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [-1, -2, 0])
def test_row_equals_output_attentions(kernel, layer):
    t = llava_next()
    model = t.model
    pixels = t.inputs(["<image>"], [picture(168, 168)])["pixel_values"][0]
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        plain = tower(pixels, output_attentions=True)
    tower.set_attn_implementation(kernel)
    module = LlavaNextAdapter().attention(model.model, layer)
    tap.install(module)
    with torch.no_grad(), tap.record(module, tap.reader("attention", 0)) as recording:
        tapped = tower(pixels)
    tap.uninstall(module)
    expected = plain.attentions[layer][:, :, 0].mean(1)
    torch.testing.assert_close(recording.rows[0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(tapped.last_hidden_state, plain.last_hidden_state, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_logits_are_what_the_softmax_sees(kernel):
    t = llava_next()
    model = t.model
    tower = model.model.vision_tower
    tower.set_attn_implementation(kernel)
    module = LlavaNextAdapter().attention(model.model, -1)
    pixels = t.inputs(["<image>"], [picture(168, 84)])["pixel_values"][0]
    inputs = []
    hook = module.register_forward_pre_hook(
        lambda _, args, kwargs: inputs.append(kwargs.get("hidden_states", args[0] if args else None)), with_kwargs=True
    )
    tap.install(module)
    with torch.no_grad(), tap.record(module, tap.reader("logits", 0)) as recording:
        tower(pixels)
        heads = module.num_heads
        query = module.q_proj(inputs[0])[:, :1].unflatten(-1, (heads, -1)).transpose(1, 2)
        key = module.k_proj(inputs[0]).unflatten(-1, (heads, -1)).transpose(1, 2)
        by_hand = (query @ key.transpose(-1, -2) * module.head_dim**-0.5)[:, :, 0].mean(1)
    tap.uninstall(module), hook.remove()
    torch.testing.assert_close(recording.rows[0], by_hand, atol=1e-6, rtol=0)


def test_an_installed_tap_changes_nothing_and_goes_without_a_trace():
    t = llava_next()
    model = t.model
    inputs = t.inputs(["<image>"], [picture(168, 168)])
    module = LlavaNextAdapter().attention(model.model, -1)
    config = module.config
    with torch.no_grad():
        before = model(**inputs).logits
        tap.install(module)
        tapped = module.config
        tap.install(module)
        assert module.config is tapped  # a second tap is the first one
        assert torch.equal(model(**inputs).logits, before)
    tap.uninstall(module)
    assert module.config is config


def test_a_layer_that_does_not_exist(llava):
    with pytest.raises(InputError, match=r"layer must be in \[-4, 3\]"):
        LlavaNextAdapter().attention(llava.model.model, 4)


def test_received_attention_is_the_mean_of_the_columns():
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 300, 8), torch.randn(2, 2, 300, 8)
    mask = torch.zeros(2, 1, 1, 300)
    mask[1, ..., 250:] = -torch.inf
    for given in (None, mask, mask.expand(-1, -1, 300, -1), mask == 0):
        received = tap.received_attention(query, key, given, None)
        logits = query @ key.repeat_interleave(2, 1).mT * 8**-0.5
        if given is not None:
            logits = logits + mask
        torch.testing.assert_close(received, logits.softmax(-1).mean((1, 2)))
        torch.testing.assert_close(received.sum(1), torch.ones(2))
