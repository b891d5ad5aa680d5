"""Blocks, apply and remove around a model: nesting, copies, threads, wrappers, saving."""

import copy
import sys
import threading

import pytest
import torch

from calls import GREEDY, IMAGE_ROWS, generate
from globalcom2 import UnsupportedModelError, apply, compress, remove
from globalcom2.hf.compression import current
from independent import cut_embeddings, one_row, reports_keep
from tiny import footprint, picture


def test_leaving_a_block_twice_does_nothing(tiny):
    compression = compress(tiny.model, 0.2)
    compression.__enter__()
    with compress(tiny.model, 0.3):
        for _ in range(2):
            compression.__exit__(None, None, None)
    compression.__exit__(None, None, None)


def test_nested_blocks_and_apply(tiny):
    model, inputs = tiny.model, tiny.inputs(["<image>"], [picture(168, 168)])

    def visual():
        with torch.no_grad():
            return model(**inputs).logits.shape[1]

    full = visual()
    apply(model, 0.5)
    half = visual()
    with compress(model, 0.1):
        tenth = visual()
        with compress(model, 0.25, layer=0) as inner:
            quarter = visual()
        assert inner.report.retention_ratio == 0.25
        assert visual() == tenth
        remove(model)  # what apply did; the block stays
        assert visual() == tenth
    assert visual() == full
    assert full > half > quarter > tenth
    apply(model, 0.5)
    apply(model, 0.1)  # replaces
    assert visual() == tenth
    assert current(model).settings.retention_ratio == 0.1
    remove(model)
    remove(model)
    assert current(model) is None


def test_an_exception_leaves_the_model_clean(tiny):
    before = footprint(tiny.model)
    with pytest.raises(ZeroDivisionError), compress(tiny.model, 0.1):
        raise ZeroDivisionError
    assert footprint(tiny.model) == before


def test_deepcopy_inside_the_block(tiny):
    model, inputs = tiny.model, tiny.inputs(["<image>"], [picture(168, 168)])
    plain = generate(model, inputs)
    with compress(model, 0.1) as compression:
        ours = generate(model, inputs)
        clone = copy.deepcopy(model)
        clone.lm_head.weight.data.neg_()  # a copy must not call the original
        assert not torch.equal(generate(clone, inputs), ours)
        clone.lm_head.weight.data.neg_()
        assert torch.equal(generate(clone, inputs), ours)
        assert len(compression.report) == 1
    assert torch.equal(generate(clone, inputs), plain)
    with compress(clone, 0.1):
        assert current(model) is None
        assert torch.equal(generate(clone, inputs), ours)
    assert "generate" not in clone.__dict__
    assert not clone._forward_pre_hooks


def test_a_deep_copy_of_an_applied_model_is_applied_too(tiny):
    inputs = tiny.inputs(["<image>"], [picture(168, 168)])
    model = copy.deepcopy(tiny.model)
    plain = generate(model, inputs)
    apply(model, 0.1)
    ours, clone = generate(model, inputs), copy.deepcopy(model)
    remove(model)
    assert torch.equal(generate(model, inputs), plain)
    assert torch.equal(generate(clone, inputs), ours)
    assert current(clone).settings.retention_ratio == 0.1
    remove(clone)
    assert torch.equal(generate(clone, inputs), plain)
    assert not clone._forward_pre_hooks


def test_threads_enter_and_leave_blocks(tiny):
    model, failed = tiny.model, []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work():
        try:
            for _ in range(300):
                with compress(model, 0.2):
                    pass
        except Exception as error:
            failed.append(error)

    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    finally:
        sys.setswitchinterval(interval)
    assert not failed


def test_a_tap_that_cannot_be_put_on_leaves_nothing_behind(tiny):
    compression = compress(tiny.model, 0.1)
    compression.taps = [torch.nn.Linear(2, 2)]
    with pytest.raises(UnsupportedModelError, match="attention interface, got Linear"), compression:
        pass


def test_threads_share_a_model(tiny, batch):
    model = tiny.model
    inputs = [one_row(batch, row, IMAGE_ROWS) for row in (0, 1, 3)] * 2
    with compress(model, 0.2):
        expected = [generate(model, x, num_beams=2) for x in inputs]
        results = [None] * len(inputs)

        def work(i):
            results[i] = generate(model, inputs[i], num_beams=2)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_peft(tiny):
    peft = pytest.importorskip("peft")
    inputs = tiny.inputs(["a <image> b"], [picture(168, 84)])
    model = copy.deepcopy(tiny.model)
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    ).eval()
    with compress(wrapped, 0.2) as compression:
        unmerged = wrapped.generate(**inputs, **GREEDY)
        assert len(compression.report) == 1
    merged = wrapped.merge_and_unload()
    with compress(merged, 0.2):
        assert torch.equal(generate(merged, inputs), unmerged)


def test_torch_compile(tiny):
    model, inputs = copy.deepcopy(tiny.model), tiny.inputs(["a <image> b"], [picture(168, 84)])
    with compress(model, 0.2):
        expected, logits = generate(model, inputs), model(**inputs).logits
    compiled = torch.compile(model, backend="eager")
    with compress(compiled, 0.2) as compression, torch.no_grad():
        assert torch.equal(compiled.generate(**inputs, **GREEDY), expected)
        torch.testing.assert_close(compiled(**inputs).logits, logits, atol=2e-5, rtol=0)
        assert len(compression.report) == 1
    model.model.vision_tower = torch.compile(model.model.vision_tower, backend="eager")
    for _ in range(2):
        with compress(model, 0.2):
            assert torch.equal(generate(model, inputs), expected)


def test_pipeline(tiny):
    from transformers import pipeline

    pipe = pipeline("image-text-to-text", model=tiny.model, processor=tiny.processor)
    with compress(tiny.model, 0.2) as compression:
        out = pipe(images=[picture(168, 84)], text="<image> what", generate_kwargs=GREEDY, return_full_text=False)
        assert compression.report.tokens_before > compression.report.tokens_after > 0
        inputs = tiny.inputs(["<image> what"], [picture(168, 84)])
        text = tiny.processor.decode(
            generate(tiny.model, inputs)[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
    assert out[0]["generated_text"] == text


def test_bfloat16_and_eager(tiny, batch):
    model = copy.deepcopy(tiny.model)
    model.set_attn_implementation("eager")
    with compress(model, 0.2) as compression:
        eager = generate(model, batch)
        keep = reports_keep(compression)
    with compress(tiny.model, 0.2) as compression:
        assert torch.equal(generate(tiny.model, batch), eager)
        assert torch.equal(reports_keep(compression), keep)
    half = copy.deepcopy(tiny.model).to(torch.bfloat16)
    inputs = {**batch, "pixel_values": batch["pixel_values"].to(torch.bfloat16)}
    with compress(half, 0.2) as compression:
        logits = generate(half, inputs, output_logits=True, return_dict_in_generate=True).logits[0]
        half_keep = reports_keep(compression)
    assert half_keep.sum() == keep.sum()
    embeds, mask, _ = cut_embeddings(half, inputs, half_keep)
    with torch.no_grad():
        expected = half(inputs_embeds=embeds.to(torch.bfloat16), attention_mask=mask).logits[:, -1]
    torch.testing.assert_close(logits, expected.float(), atol=0.06, rtol=0.05)


def test_save_inside_a_block_saves_a_plain_model(tiny, tmp_path):
    with compress(tiny.model, 0.1):
        tiny.model.save_pretrained(tmp_path)
    loaded = type(tiny.model).from_pretrained(tmp_path)
    inputs = tiny.inputs(["<image>"], [picture(84, 84)])
    assert torch.equal(loaded(**inputs).logits, tiny.model(**inputs).logits)
    assert "globalcom2" not in (tmp_path / "config.json").read_text()
