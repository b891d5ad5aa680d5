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
    assert module.config is tapped  # taps are counted
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
        attention = logits.softmax(-1).mean(1)
        if given is not None:
            attention[1, 250:] = 0  # what padding looks at does not count
        expected = attention.sum(1) / torch.tensor([[300.0], [300.0 if given is None else 250.0]])
        torch.testing.assert_close(received, expected)
        torch.testing.assert_close(received.sum(1), torch.ones(2))


@pytest.mark.parametrize("cls_index", [0, -1, None])
def test_the_mean_query_row_is_the_mean_of_all_tokens_logits(cls_index):
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 30, 8), torch.randn(2, 2, 30, 8)
    mask = torch.zeros(2, 1, 1, 30)
    mask[1, ..., 25:] = torch.finfo(torch.float32).min
    logits = query @ key.repeat_interleave(2, 1).mT * 8**-0.5
    tokens = torch.ones(2, 30)
    if cls_index is not None:
        tokens[:, cls_index] = 0
    for given in (None, mask, (mask == 0).expand(-1, -1, 30, -1), (mask == 0)[:, 0, 0].long()):
        own = tokens if given is None else tokens * (mask == 0)[:, 0, 0]
        expected = ((logits * own[:, None, :, None]).sum(2) / own.sum(1)[:, None, None]).mean(1)
        row = tap.reader("mean_query", cls_index)(query, key, given, None)
        shown = slice(None) if given is None else slice(25)
        torch.testing.assert_close(row[:, shown], expected[:, shown])
        if cls_index is None:
            assert torch.equal(tap.reader("logits", None)(query, key, given, None), row)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_the_mean_query_row_of_a_tower_with_cls_is_that_of_its_patches(kernel):
    t = llava_next()
    tower = t.model.model.vision_tower
    tower.set_attn_implementation(kernel)
    module = LlavaNextAdapter().attention(t.model.model, -1)
    seen = []
    hook = module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("hidden_states", args[0] if args else None)), with_kwargs=True
    )
    tap.install(module)
    with torch.no_grad(), tap.record(module, tap.reader("mean_query", 0)) as recording:
        tower(t.inputs(["<image>"], [picture(168, 84)])["pixel_values"][0])
        query, key = (
            project(seen[0]).unflatten(-1, (4, -1)).transpose(1, 2) for project in (module.q_proj, module.k_proj)
        )
        by_hand = (query @ key.mT * module.head_dim**-0.5)[:, :, 1:].mean((1, 2))
    tap.uninstall(module), hook.remove()
    torch.testing.assert_close(recording.rows[0], by_hand, atol=1e-6, rtol=0)


def test_views_laid_end_to_end_leave_a_row_each(monkeypatch):
    """As flash kernels get them from towers that take views of several sizes."""
    torch.manual_seed(0)
    query, key = torch.randn(1, 4, 12, 8), torch.randn(1, 4, 12, 8)
    module = torch.nn.Module()
    monkeypatch.setitem(tap.ALL_ATTENTION_FUNCTIONS._global_mapping, "packed", lambda *_, **__: "the kernel's own")
    read = tap.reader("attention", None)
    with tap.record(module, read) as recording:
        ends = torch.tensor([0, 8, 12])
        assert (
            tap._tapped("packed")(module, query, key, key, attention_mask=None, cu_seq_lens_q=ends)
            == "the kernel's own"
        )
    expected = [read(query[:, :, own], key[:, :, own], None, None) for own in (slice(8), slice(8, 12))]
    for row, own in zip(recording.rows, expected, strict=True):
        torch.testing.assert_close(row, own)


def test_several_modules_are_read_in_one_pass():
    t = llava_next()
    tower = t.model.model.vision_tower
    adapter = LlavaNextAdapter()
    last, first = (adapter.attention(t.model.model, layer) for layer in (-1, 0))
    pixels = t.inputs(["<image>"], [picture(168, 84)])["pixel_values"][0]
    read = tap.reader("attention", 0)
    alone = []
    for module in (last, first):
        tap.install(module)
        with torch.no_grad(), tap.record(module, read) as recording:
            tower(pixels)
        alone += recording.rows
    more, keys, none = tap.Recording(first, read), tap.Recording(last, tap.mean_keys), tap.Recording(None, read)
    with torch.no_grad(), tap.record(last, read, more, keys, none) as recording, tap.outputs_of(tower) as outputs:
        output = tower(pixels)
    tap.uninstall(last), tap.uninstall(first)
    assert torch.equal(recording.rows[0], alone[0])
    assert torch.equal(more.rows[0], alone[1])
    assert keys.rows[0].shape == (3, 37, 12)
    assert none.rows == []
    assert outputs == [output]
    assert not [hook for hook in tower._forward_hooks.values() if "outputs_of" in hook.__qualname__]
