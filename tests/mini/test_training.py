"""The mini model's training sees what the model sees when it is asked."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "training" / "mini"


@pytest.fixture(scope="module")
def training():
    """(batches, decoder, a model with random weights, its processor), over photographs that the tests have."""
    pytest.importorskip("skimage")
    sys.path.insert(0, str(FOLDER))
    try:
        import batches
        import build
        import decoder
        import scenes
    finally:
        sys.path.remove(str(FOLDER))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "scene", partial(scenes.scene, photos=scenes.TUNING_PHOTOS))
        processor = build.processor()
        torch.manual_seed(0)
        model = build.model(processor.tokenizer).eval()
        with torch.no_grad():
            model.model.image_newline.normal_()
        yield batches, decoder, model, processor


@pytest.mark.parametrize("everything", [True, False])
def test_a_turn_reads_the_picture_as_if_asked_alone(training, monkeypatch, everything):
    batches, decoder, model, processor = training
    monkeypatch.setattr(batches, "ALL_TOKENS", {True: float(everything)})
    batch = batches.Pictures(9, 9, pictures=2)[3]
    language = model.model.language_model
    language.set_attn_implementation("turns")
    with torch.no_grad():
        hidden = decoder.hidden_state(model.model.vision_tower, decoder.normalise(batch.views.pixels))
        logits, seen, _ = decoder.run(model, batch, hidden)
    language.set_attn_implementation("sdpa")
    assert batch.everything is everything
    assert torch.allclose(seen.sum(-1), torch.ones(()), atol=1e-5)

    opening = torch.tensor(processor.tokenizer.convert_tokens_to_ids(["<s>", "<user>"]))
    features = model.model.multi_modal_projector(hidden[:, 1:].flatten(0, 1))
    embed = model.get_input_embeddings()
    row = 1
    newline = (batch.visual[row] < 0)[:, None]
    visual = torch.where(newline, model.model.image_newline, features[batch.visual[row].clamp(min=0)])
    for turn in range(len(batch.kinds[row])):
        places = (batch.turn[row] == turn).nonzero().flatten()
        own = torch.cat([embed(opening), visual, embed(batch.ids[row, places])])[None]
        with torch.no_grad():
            alone = model(inputs_embeds=own).logits[0, -len(places) - 1 : -1]
        torch.testing.assert_close(logits[row, places[1:]], alone[1:], atol=1e-4, rtol=1e-4)


def test_what_is_packed_is_what_the_model_packs(training, monkeypatch):
    """All tokens of a picture: the run of embeddings equals the model's own for the same pixels."""
    batches, decoder, model, processor = training
    monkeypatch.setattr(batches, "ALL_TOKENS", {True: 1.0})
    batch = batches.Pictures(9, 9)[1]
    picture = batches.scene("decoder-1-0", grids=(_grid(batch),)).image
    inputs = processor(text="<s><user><image>read<assistant>", images=picture, return_tensors="pt")
    with torch.no_grad():
        own = model.get_image_features(inputs["pixel_values"], image_sizes=inputs["image_sizes"]).pooler_output
        hidden = decoder.hidden_state(model.model.vision_tower, inputs["pixel_values"][0])
        features = model.model.multi_modal_projector(hidden[:, 1:].flatten(0, 1))
        assert batch.visual[0].max() == len(hidden) * batches.TOKENS - 1
        newline = (batch.visual[0] < 0)[:, None]
        packed = torch.where(newline, model.model.image_newline, features[batch.visual[0].clamp(min=0)])
    torch.testing.assert_close(packed, torch.cat(list(own)), atol=1e-5, rtol=1e-5)
    first = decoder.normalise(batch.views.pixels[: len(hidden)])
    torch.testing.assert_close(first, inputs["pixel_values"][0], atol=2e-2, rtol=0)


def _grid(batch):
    """The grid of a batch's pictures: eight lines per row of crops, eight tokens and a newline per line and crop."""
    lines = int((batch.visual[0] < 0).sum())
    return lines // 8, ((batch.visual.shape[1] - 64) // lines - 1) // 8


def test_guided_words_look_at_what_they_name(training):
    batches, *_ = training
    batch = batches.Pictures(9, 9)[5]
    assert len(batch.guided) == len(batch.targets) > 50
    opening = batches.OPENING
    counting = [batches.special_words()[3][word] for word in batches.COUNTING]
    for (row, word, layer, head), target in zip(batch.guided.tolist(), batch.targets, strict=True):
        assert batch.turn[row, word] >= 0
        keys = target.nonzero().flatten()
        if layer != batches.SEEING:  # a word of the same turn, not after this one
            (key,) = (keys - opening - batch.visual.shape[1]).tolist()
            assert 0 <= key <= word
            assert batch.turn[row, key] == batch.turn[row, word]
            continue
        if keys[0] == 0 or batch.ids[row, word] in counting:  # nothing is so called, or the test below
            continue
        places = batch.visual[row, keys[keys >= opening] - opening]
        assert (places >= 0).all(), "a newline"
        view, token = places // batches.TOKENS, places % batches.TOKENS
        owners = batch.views.owners[view, :, token]
        part = {"tens": 1, "units": 2}.get(batches.GUIDES[layer][head], 0)
        assert (owners[:, part] >= 0).all()
        assert len(owners[:, part].unique()) == 1


def test_tags_are_counted_color_by_color(training, monkeypatch):
    """Each centre once in the crops, by the head of its tag's colour; "many" looks at the thumbnail, all of it."""
    batches, *_ = training
    monkeypatch.setattr(batches, "ALL_TOKENS", {True: 1.0})
    batch = batches.Pictures(9, 9)[6]
    counted, rows = {}, []
    many, tags = (batches.special_words()[3][word] for word in batches.COUNTING)
    for (row, word, layer, head), target in zip(batch.guided.tolist(), batch.targets, strict=True):
        keys = target.nonzero().flatten()
        if layer == batches.SEEING and batch.ids[row, word] == many:
            assert keys.tolist() == list(range(batches.OPENING, batches.OPENING + batches.TOKENS))
            rows.append(row)
        if layer == batches.SEEING and batch.ids[row, word] == tags:
            assert keys[0] == 0
            counted[row, head] = batch.visual[row, keys[1:] - batches.OPENING]
    assert rows
    assert len(counted) == len(rows) * len(batches.COLORS)
    for (row, head), places in counted.items():
        view, token = places // batches.TOKENS, places % batches.TOKENS
        assert (view != batch.visual[row, 0] // batches.TOKENS).all()
        colors = batch.views.patches[view, 0, token]  # the first of PATCH_HEADS
        assert (colors == head).all()
    for row in rows:
        shown = batches.scene(f"decoder-6-{row}", grids=(_grid(batch),)).tags
        colors = [list(batches.COLORS).index(tag.color) for tag in shown]
        assert [len(counted[row, head]) for head in range(8)] == [colors.count(head) for head in range(8)]


@pytest.mark.parametrize("grid", [(1, 2), (3, 1), (3, 3)])
@pytest.mark.parametrize("count", [24, 41, 160])
def test_shortened_pictures_hold_what_they_should(training, grid, count):
    """`count` places once each and in order; with newlines, one for every line that keeps a token and at most one more."""
    batches, *_ = training
    slots = batches.packing(grid)
    tokens = batches.TOKENS * (1 + grid[0] * grid[1])
    newlines = (slots >= tokens).nonzero()[0]
    draw = np.random.default_rng(count)
    for _ in range(20):
        places = draw.permutation((slots < tokens).nonzero()[0])
        kept = batches.with_newlines(places, newlines, count)
        assert len(kept) == count
        assert (np.diff(kept) > 0).all()
        ends = {newlines[newlines > place][0] for place in kept if place >= batches.TOKENS and slots[place] < tokens}
        spare = set(kept[slots[kept] >= tokens]) - ends
        assert ends <= set(kept)
        assert len(spare) <= 1
        first = places[: (slots[kept] < tokens).sum()]
        assert set(first) == set(kept[slots[kept] < tokens]), "the best of them"


def test_nothing_is_asked_that_was_dropped(training):
    """Numbers are asked for, of answers and of words, only where a token of either digit is kept."""
    batches, *_ = training
    asked = 0
    for step in range(6):
        batch = batches.Pictures(9, 9, pictures=4)[step]
        for (row, word), known in zip(batch.knowing.tolist(), batch.known.tolist(), strict=True):
            kept = batch.visual[row][batch.visual[row] >= 0]
            owners = batch.views.owners[kept // batches.TOKENS, :, kept % batches.TOKENS]
            turn = (batch.turn[row] == batch.turn[row, word]).nonzero().flatten()
            kind = batch.kinds[row][batch.turn[row, word]]
            if kind not in ("read", "document"):
                continue
            asked += 1
            digits = [
                batch.views.patches[kept // batches.TOKENS, head, kept % batches.TOKENS][owners[:, part] >= 0]
                for part, head in ((1, 2), (2, 3))
            ]
            answer = [int(digit) for digit in batches.tokenizer().decode(batch.ids[row, turn]) if digit.isdigit()]
            assert answer == known[:2]
            assert all(digit in seen for digit, seen in zip(answer, digits, strict=True))
    assert asked > 20
