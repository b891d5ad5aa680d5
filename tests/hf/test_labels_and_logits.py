"""Losses: labels on images, shifted labels, and logits at the caller's own places, against the short prompt by hand."""

import functools

import pytest
import torch
import torch.nn.functional as F

from families import FAMILIES
from globalcom2 import InputError, compress
from independent import cut_call, reports_keep
from tiny import picture


@functools.cache
def built(name):
    return FAMILIES[name]()


@pytest.fixture(params=["llava_next", "llava_onevision", "internvl", "idefics3", "granite4_vision", "minicpmv4_6"])
def family(request):
    return built(request.param)


def batch(tiny):
    texts = [f"a {tiny.tag} b {tiny.tag} cc", f"look: {tiny.tag}??", "no picture here"]
    return tiny.inputs(texts, [picture(168, 168, 1), picture(60, 200, 2), picture(400, 100, 3)])


def labels_of(tiny, inputs, *, on_images=False):
    labels = inputs["input_ids"].masked_fill(~inputs["attention_mask"].bool(), -100)
    return labels if on_images else labels.masked_fill(labels == tiny.model.config.image_token_id, -100)


def test_full_logits_give_the_loss_of_the_short_prompt(family):
    tiny, inputs = family, batch(family)
    labels = labels_of(tiny, inputs)
    first = (~inputs["attention_mask"].bool()).sum(1, keepdim=True)
    labels.scatter_(1, first, -100)  # what padding predicts is nobody's affair
    with compress(tiny.model, 0.25, logits="full"), torch.no_grad():
        out = tiny.model(**inputs, labels=labels)
    assert out.logits.shape[:2] == inputs["input_ids"].shape
    outside = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(outside, out.loss, atol=1e-5, rtol=1e-5)


def test_full_logits_by_hand(family):
    """Kept places have the logits of the prompt cut by hand; dropped ones those of the last kept place before them."""
    tiny, inputs = family, batch(family)
    with compress(tiny.model, 0.25, logits="full") as compression, torch.no_grad():
        logits = tiny.model(**inputs).logits
    keep = reports_keep(compression)
    call = cut_call(tiny.model, inputs, keep)
    places = (call["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        short = tiny.model(**call, position_ids=places).logits
    image = inputs["input_ids"] == tiny.model.config.image_token_id
    stays = inputs["attention_mask"].bool().masked_scatter(image, keep)
    for row in range(len(image)):
        own = short[row][call["attention_mask"][row].bool()]
        number = stays[row].cumsum(0) - 1
        expected = torch.where((number >= 0)[:, None], own[number.clamp(min=0)], 0.0)
        torch.testing.assert_close(logits[row], expected, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("to_keep", [1, 5, 40])
def test_full_logits_of_the_last_places(tiny, batch, to_keep):
    with compress(tiny.model, 0.25, logits="full"), torch.no_grad():
        whole = tiny.model(**batch).logits
        last = tiny.model(**batch, logits_to_keep=to_keep).logits
    torch.testing.assert_close(last, whole[:, -to_keep:], atol=1e-5, rtol=1e-5)


def test_full_logits_in_a_tuple(tiny, batch):
    labels = labels_of(tiny, batch)
    with compress(tiny.model, 0.25, logits="full"), torch.no_grad():
        out = tiny.model(**batch, labels=labels)
        loss, logits, *_ = tiny.model(**batch, labels=labels, return_dict=False)
        assert torch.equal(tiny.model(**batch, return_dict=False)[0], out.logits)
    assert torch.equal(loss, out.loss)
    assert torch.equal(logits, out.logits)


def test_ratio_one_leaves_full_logits_alone(tiny, batch):
    with torch.no_grad():
        plain = tiny.model(**batch).logits
        with compress(tiny.model, 1.0, logits="full"):
            assert torch.equal(tiny.model(**batch).logits, plain)
    with pytest.raises(InputError, match="logits must be one of"):
        compress(tiny.model, 0.25, logits="whole")


def test_gradients_flow_through_full_logits(tiny):
    inputs = tiny.inputs(["a <image> b"], [picture(168, 84)])
    labels, weight = labels_of(tiny, inputs), tiny.model.model.multi_modal_projector.linear_1.weight
    gradients = []
    for logits in ("short", "full"):
        with compress(tiny.model, 0.25, logits=logits):
            out = tiny.model(**inputs, labels=labels)
        loss = out.loss if logits == "short" else F.cross_entropy(out.logits[0, :-1], labels[0, 1:])
        gradients.append(torch.autograd.grad(loss, weight)[0])
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_labels_on_images_are_left_out_and_the_loss_is_scaled_rightly(family):
    tiny, inputs = family, batch(family)
    asked, usual = labels_of(tiny, inputs, on_images=True), labels_of(tiny, inputs)
    with compress(tiny.model, 0.25), torch.no_grad():
        expected = tiny.model(**inputs, labels=usual).loss
        counted = tiny.model(**inputs, labels=usual, num_items_in_batch=int((usual[:, 1:] != -100).sum())).loss
        with pytest.warns(UserWarning, match="labels on visual tokens are left out"):
            loss = tiny.model(**inputs, labels=asked).loss
        for kind in (int, torch.tensor):
            with pytest.warns(UserWarning, match="labels on visual tokens are left out"):
                scaled = tiny.model(**inputs, labels=asked, num_items_in_batch=kind(int((asked != -100).sum()))).loss
            # Trainers count the first token of a row too, which no place predicts.
            torch.testing.assert_close(scaled, expected * (usual[:, 1:] != -100).sum() / (usual != -100).sum())
    assert torch.equal(loss, expected)
    torch.testing.assert_close(counted, expected)


def test_shifted_labels(family):
    """A kept token's shifted label is the next kept token's label."""
    tiny, inputs = family, batch(family)
    labels = labels_of(tiny, inputs)
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    with compress(tiny.model, 0.25), torch.no_grad():
        expected = tiny.model(**inputs, labels=labels).loss
        loss = tiny.model(**inputs, labels=labels, shift_labels=shifted).loss
        marked = F.pad(labels_of(tiny, inputs, on_images=True)[:, 1:], (0, 1), value=-100)
        with pytest.warns(UserWarning, match="labels on visual tokens are left out"):
            assert torch.equal(tiny.model(**inputs, labels=labels, shift_labels=marked).loss, loss)
    torch.testing.assert_close(loss, expected)


def test_a_count_of_several_batches_stays(tiny, batch):
    """A trainer that accumulates gradients divides by labels of other calls too, which nobody knows here."""
    asked, usual = labels_of(tiny, batch, on_images=True), labels_of(tiny, batch)
    count = int((asked != -100).sum()) + 7
    with compress(tiny.model, 0.25), torch.no_grad():
        expected = tiny.model(**batch, labels=usual, num_items_in_batch=count).loss
        with pytest.warns(UserWarning, match="divides the loss by too much"):
            assert torch.equal(tiny.model(**batch, labels=asked, num_items_in_batch=count).loss, expected)
