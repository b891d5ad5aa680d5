"""PEFT: adapters in the layers, prefixes in the cache and virtual tokens before the prompt. At its lowest version too."""

import peft
import pytest
import recipes
import torch

from globalcom2 import compress
from independent import reports_keep

VIRTUAL = 3
GREEDY = {"max_new_tokens": 4, "do_sample": False}


def wrapped(tiny, config, seed=3):
    """PEFT's model around a copy of a tiny one, whose new weights matter."""
    model = peft.get_peft_model(recipes.fresh(tiny), config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def lora(task):
    return peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type=task)


def prompts(tiny):
    return dict(tiny.inputs([f"u:{tiny.tag}{text};a:" for text in recipes.PROMPTS], recipes.images()))


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_lora_trains(family, task):
    """A direct call with labels is compressed, whichever way PEFT calls the model: loss and gradient as by hand."""
    model, other = (wrapped(family, lora(task)) for _ in range(2))
    inputs, _ = recipes.batch(family)
    labels = recipes.text_labels(family.model, inputs)
    with compress(model, 0.25) as compression:
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        assert compression.report.tokens_after < compression.report.tokens_before
        keep = reports_keep(compression)
    expected = recipes.loss_by_hand(other.get_base_model(), inputs, keep, labels)
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=2e-4, rtol=1e-4)
    theirs, seen = dict(other.named_parameters()), 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            seen += 1
            torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=5e-4, rtol=5e-3)
    assert seen
    with torch.no_grad():
        assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
@pytest.mark.parametrize("target", ["wrapper", "inside"])
def test_lora_generates(family, task, target):
    model = wrapped(family, lora(task))
    inputs = prompts(family)
    with compress(model if target == "wrapper" else model.get_base_model(), 0.25) as compression:
        ours = model.generate(**inputs, **GREEDY)
        assert compression.report.tokens_after < compression.report.tokens_before
    merged = wrapped(family, lora(task)).merge_and_unload()
    with compress(merged, 0.25):
        assert torch.equal(merged.generate(**inputs, **GREEDY), ours)


def test_without_its_adapter(family):
    """What PEFT gives trainers as a reference: the same model with the adapter off, in the same block."""
    model = wrapped(family, lora("CAUSAL_LM"))
    inputs, _ = recipes.batch(family)
    with compress(model, 0.25), torch.no_grad():
        on = model(**inputs).logits
        with model.disable_adapter():
            off = model(**inputs).logits
    with compress(family.model, 0.25), torch.no_grad():
        torch.testing.assert_close(off, family.model(**inputs).logits, atol=2e-4, rtol=0)
    assert not torch.allclose(on, off, atol=1e-3)


def cut_row(model, inputs, keep):
    """The embeddings of a batch of one prompt, cut by hand."""
    ids = inputs["input_ids"]
    tags = ids == model.config.image_token_id
    embeds = model.get_input_embeddings()(ids.masked_fill(tags, 0))
    embeds = embeds.masked_scatter(tags[..., None], recipes.visual_features(model, inputs))
    (columns,) = recipes.columns_kept(model, inputs, keep)
    return embeds[:, columns]


def prefixed(model, embeds):
    """Logits of embeddings after a prefix, by PEFT's own hands."""
    return model(inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long)).logits


def greedy(model, embeds, new=4):
    """Answer token by token, without a cache between steps."""
    answer = []
    for _ in range(new):
        logits = prefixed(model, embeds)[0, -1].clone()
        logits[model.config.image_token_id] = -torch.inf  # generation_config.suppress_tokens
        answer.append(int(logits.argmax()))
        embeds = torch.cat([embeds, model.get_base_model().get_input_embeddings()(torch.tensor([[answer[-1]]]))], 1)
    return answer


def one_prompt(tiny):
    return dict(tiny.inputs([f"u:{tiny.tag}what is it;a:"], recipes.images()[:1]))


def test_prefix_tuning(family):
    """The prefix lies in a cache that the call brings along: the prompt after it is compressed."""
    model = wrapped(family, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL))
    inputs = one_prompt(family)
    with compress(model, 0.25) as compression, torch.no_grad():
        direct = model(**inputs).logits
        assert compression.report.tokens_after < compression.report.tokens_before
        keep = reports_keep(compression)
    with torch.no_grad():
        expected = prefixed(model, cut_row(model.get_base_model(), inputs, keep))
    torch.testing.assert_close(direct, expected, atol=2e-4, rtol=0)


def test_prefix_tuning_trains(llava_chat):
    """A batch with labels: gradients reach the prefix, and padding does not matter."""
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL)
    model, other = wrapped(llava_chat, config), wrapped(llava_chat, config)
    sums, count = 0.0, 0
    inputs, _ = recipes.batch(llava_chat)
    labels = recipes.text_labels(llava_chat.model, inputs)
    with compress(model, 0.25):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
    for row in (0, 1):
        alone, _ = recipes.batch(llava_chat, (row,))
        with compress(other, 0.25):
            own = recipes.text_labels(llava_chat.model, alone)
            number = int((own != recipes.IGNORED).sum())
            sums, count = sums + other(**alone, labels=own).loss * number, count + number
    (sums / count).backward()
    torch.testing.assert_close(loss, sums / count, atol=2e-4, rtol=1e-4)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        if ours.requires_grad:
            assert ours.grad.abs().sum() > 0
            torch.testing.assert_close(ours.grad, theirs.grad, atol=5e-4, rtol=5e-3)


@pytest.mark.parametrize("ratio", [0.999, 0.25])
def test_prefix_tuning_generates(family, ratio):
    """PEFT 0.18 to 0.21 loses the prefix while transformers 5.24 generates, compressed or not: either answer will do."""
    model = wrapped(family, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL))
    inputs = one_prompt(family)
    with compress(model, ratio) as compression:
        ours = model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :].tolist()
        assert len(compression.report) == 1
        keep = reports_keep(compression)
    with torch.no_grad():
        expected = greedy(model, cut_row(model.get_base_model(), inputs, keep))
    with compress(family.model, ratio):
        lost = family.model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :].tolist()
    assert ours in (expected, lost)


def test_prompt_tuning_passes_through(family):
    """PEFT hands over embeddings with virtual tokens before them, and no ids: a direct call is not compressed."""
    model = wrapped(family, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL))
    inputs, _ = recipes.batch(family)
    with torch.no_grad():
        plain = model(**inputs).logits
        with compress(model, 0.25) as compression:
            assert torch.equal(model(**inputs).logits, plain)
            assert len(compression.report) == 0


@pytest.mark.parametrize("ratio", [0.999, 0.25])
def test_prompt_tuning_generates(family, ratio):
    """`generate` is given ids: its prompt is compressed, then PEFT puts the virtual tokens before it.

    Without a cache: with one, PEFT's answers differ from its own without one, compressed or not.
    """
    model = wrapped(family, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL))
    inputs = one_prompt(family)
    with compress(model, ratio) as compression:
        ours = model.generate(**inputs, **GREEDY, use_cache=False)
        keep = reports_keep(compression)
    with torch.no_grad():
        expected = greedy(model, cut_row(model.get_base_model(), inputs, keep))
    assert ours[0, inputs["input_ids"].shape[1] :].tolist() == expected


@pytest.mark.parametrize("kind", ["ia3", "p-tuning"])
def test_other_methods(llava_chat, kind):
    """What scales layers is compressed; what puts embeddings before the prompt is not."""
    config = {
        "ia3": peft.IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj"], feedforward_modules=[]),
        "p-tuning": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL),
    }[kind]
    model, inputs = wrapped(llava_chat, config), one_prompt(llava_chat)
    with torch.no_grad():
        plain = model(**inputs).logits
        with compress(model, 0.25) as compression:
            ours = model(**inputs).logits
            direct = len(compression.report)
            model.generate(**inputs, **GREEDY)
            assert len(compression.report) == 1
    assert direct == (1 if kind == "ia3" else 0)
    assert (ours.shape == plain.shape) == (kind == "p-tuning")
