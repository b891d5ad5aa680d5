"""Padding on either side keeps its place, in every family: what is counted from the end of a prompt stays right."""

import functools
import inspect

import pytest
import torch

from families import FAMILIES
from globalcom2 import compress
from independent import cut_call, reports_keep
from tiny import picture

COMPLETION = 3
RATIOS = (0.25, 0.999)


@functools.cache
def built(name):
    return FAMILIES[name]()


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return built(request.param)


def with_completions(tiny, texts, images, lengths, longest=COMPLETION + 3):
    """Left-padded prompts followed by right-padded completions, as trainers of preferences and rewards build them."""
    inputs = dict(tiny.inputs(texts, images))
    pad = tiny.model.generation_config.pad_token_id
    rows = [[*range(60, 60 + n), *[pad] * (longest - n)] for n in lengths]
    shown = [[1] * n + [0] * (longest - n) for n in lengths]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor(rows)], 1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.tensor(shown)], 1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, longest))
    return inputs


def ignores(tiny):
    """Whether the stock model has no `logits_to_keep`."""
    return "logits_to_keep" not in inspect.signature(type(tiny.model).forward).parameters


@torch.no_grad()
def last_logits(model, inputs, keep, count):
    """Logits of the last `count` real tokens of each row, from the unpatched model on a prompt cut by hand."""
    call = cut_call(model, inputs, keep)
    positions = (call["attention_mask"].cumsum(1) - 1).clamp(min=0)  # a direct call numbers dropped places otherwise
    logits = model(**call, position_ids=positions).logits
    return [logits[row][mask.bool()][-count:] for row, mask in enumerate(call["attention_mask"])]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("to_keep", [0, 7])
def test_one_row_with_padding_on_the_right(family, ratio, to_keep):
    tiny = family
    inputs = with_completions(tiny, [f"x {tiny.tag} y"], [picture(168, 168)], [COMPLETION])
    with compress(tiny.model, ratio) as compression, torch.no_grad():
        logits = tiny.model(**inputs, logits_to_keep=to_keep).logits
    (expected,) = last_logits(tiny.model, inputs, reports_keep(compression), 4)
    assert to_keep == 0 or logits.shape[1] == to_keep or ignores(tiny)
    torch.testing.assert_close(logits[0, -7:-3], expected, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("ratio", RATIOS)
def test_left_padded_prompts_with_right_padded_completions(family, ratio):
    tiny, lengths = family, [3, 1, 5, 2]
    texts = [f"a {tiny.tag} b {tiny.tag} cc", f"look: {tiny.tag}??", "no picture here", f"{tiny.tag} tiny"]
    images = [picture(168, 168, 1), picture(60, 200, 2), picture(400, 100, 3), picture(30, 30, 4)]
    inputs = with_completions(tiny, texts, images, lengths)
    longest = COMPLETION + 3
    with compress(tiny.model, ratio) as compression, torch.no_grad():
        logits = tiny.model(**inputs, logits_to_keep=longest + 1).logits
    assert logits.shape[:2] == (4, longest + 1) or ignores(tiny)
    logits = logits[:, -longest - 1 :]
    expected = last_logits(tiny.model, inputs, reports_keep(compression), 6)
    for row, length in enumerate(lengths):
        # The prompt's last token and the completion's tokens.
        torch.testing.assert_close(logits[row, : length + 1], expected[row][-length - 1 :], atol=5e-5, rtol=1e-5)


def test_rows_of_several_lengths_padded_on_the_right(family):
    tiny, count = family, 3
    texts = [f"a {tiny.tag} b {tiny.tag} cc and more", f"look: {tiny.tag}??", "no picture here"]
    padded = tiny.inputs(texts, [picture(168, 168, 1), picture(60, 200, 2), picture(400, 100, 3)])
    inputs, shown = dict(padded), padded["attention_mask"].bool()
    for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in inputs:  # every row's padding goes to its other end
            inputs[name] = torch.stack([torch.cat([x[s], x[~s]]) for x, s in zip(inputs[name], shown, strict=True)])
    right = (~shown).sum(1).tolist()
    with compress(tiny.model, 0.25) as compression, torch.no_grad():
        logits = tiny.model(**inputs).logits
    expected = last_logits(tiny.model, inputs, reports_keep(compression), count)
    for row, padding in enumerate(right):
        end = logits.shape[1] - padding
        torch.testing.assert_close(logits[row, end - count : end], expected[row], atol=5e-5, rtol=1e-5)


def test_the_last_places_may_reach_over_an_image(tiny):
    """`logits_to_keep` counts the caller's places; a dropped one has the logits of the last kept token before it."""
    inputs = tiny.inputs(["x <image> y"], [picture(168, 168)])
    count = inputs["input_ids"].shape[1] - 10
    with compress(tiny.model, 0.25) as compression, torch.no_grad():
        logits = tiny.model(**inputs, logits_to_keep=count).logits
        short = tiny.model(**inputs).logits[0]
    image = inputs["input_ids"][0] == tiny.model.config.image_token_id
    stays = torch.ones(len(image), dtype=torch.bool).masked_scatter(image, reports_keep(compression))
    by_hand = [short[int(stays[: place + 1].sum()) - 1] for place in range(10, len(image))]
    assert torch.equal(logits[0], torch.stack(by_hand))
