"""Direct calls of the model: labels, gradients, positions, embeddings."""

import copy

import pytest
import torch

from calls import GREEDY, generate
from families import FAMILIES
from globalcom2 import InputError, compress
from independent import cut_embeddings, reports_keep
from tiny import picture


def test_original_positions_without_a_cache(tiny):
    model, inputs = tiny.model, tiny.inputs(["one <image> two"], [picture(168, 84)])
    with compress(model, 0.2, positions="original"), torch.no_grad():
        with pytest.raises(InputError, match="use_cache must not be False"):
            generate(model, inputs, use_cache=False)
        expected = model(**inputs).logits
        bare = {k: v for k, v in inputs.items() if k != "attention_mask"}
        torch.testing.assert_close(model(**bare, use_cache=False).logits, expected, atol=2e-5, rtol=0)


def test_given_positions_are_closed_up(tiny):
    model, inputs = (
        tiny.model,
        tiny.inputs(["one <image> two", "<image> x <image>"], [picture(168, 84, s) for s in range(3)]),
    )
    with compress(model, 0.2), torch.no_grad():
        expected = model(**inputs).logits
        places = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        torch.testing.assert_close(
            model(**inputs, position_ids=places).logits[:, -3:], expected[:, -3:], atol=2e-5, rtol=0
        )
        one = {k: v[:1] for k, v in inputs.items()}
        assert model(**one, position_ids=torch.arange(one["input_ids"].shape[1])[None]).logits.shape[0] == 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_direct_call_with_labels(tiny, side):
    model, processor = tiny.model, tiny.processor
    processor.tokenizer.padding_side = side
    inputs = tiny.inputs(
        ["a <image> bcd", "a longer text <image> and more"], [picture(168, 168, 1), picture(84, 168, 2)]
    )
    processor.tokenizer.padding_side = "left"
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, -100)
    labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    labels[range(2), inputs["attention_mask"].long().argmax(1)] = -100  # nothing before it to predict it
    with compress(model, 0.2) as compression, torch.no_grad():
        ours = model(**inputs, labels=labels)
        positional = model(inputs["input_ids"], inputs["pixel_values"], inputs["image_sizes"], inputs["attention_mask"])
    embeds, mask, _ = cut_embeddings(model, inputs, reports_keep(compression))
    with torch.no_grad():
        theirs = model(inputs_embeds=embeds, attention_mask=mask).logits
    losses = []
    for row in range(2):
        wanted = [int(x) for x, m in zip(labels[row], inputs["attention_mask"][row], strict=True) if m and x != -100]
        texts = [
            i for i, x in enumerate(_short_ids(model, inputs, compression, row)) if x != model.config.image_token_id
        ][1:]
        logits = theirs[row][mask[row].bool()]
        losses += [
            torch.nn.functional.cross_entropy(logits[i - 1], torch.tensor(x))
            for i, x in zip(texts, wanted, strict=True)
        ]
    torch.testing.assert_close(ours.loss, torch.stack(losses).mean(), atol=2e-5, rtol=0)
    torch.testing.assert_close(positional.logits, ours.logits)


def _short_ids(model, inputs, compression, row):
    kept = iter(torch.cat([image.kept for image in compression.report if image.row == row]).tolist())
    pairs = zip(inputs["input_ids"][row].tolist(), inputs["attention_mask"][row].tolist(), strict=True)
    return [x for x, m in pairs if m and (x != model.config.image_token_id or next(kept))]


def test_gradients_flow_through_everything_that_is_kept(tiny):
    """A compressed training step gives the gradients of the same embeddings cut by hand."""
    inputs = tiny.inputs(["a <image> bcd"], [picture(168, 84)])
    model, other = copy.deepcopy(tiny.model), copy.deepcopy(tiny.model)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, -100)
    with compress(model, 0.3) as compression:
        model(**inputs, labels=labels).loss.backward()
    keep = reports_keep(compression)
    ids = inputs["input_ids"][0]
    keeps = torch.ones_like(ids, dtype=torch.bool).masked_scatter(ids == model.config.image_token_id, keep)
    features = other.model.get_image_features(
        inputs["pixel_values"], inputs["image_sizes"], return_dict=True
    ).pooler_output[0]
    embeds = other.get_input_embeddings()(inputs["input_ids"]).masked_scatter(
        (ids == model.config.image_token_id)[None, :, None], features
    )
    other(inputs_embeds=embeds[:, keeps], labels=labels[:, keeps]).loss.backward()
    names = ["lm_head.weight", "model.multi_modal_projector.linear_1.weight", "model.image_newline",
             "model.vision_tower.embeddings.patch_embedding.weight"]  # fmt: skip
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    for name in names:
        assert theirs[name].grad.abs().sum() > 0
        torch.testing.assert_close(ours[name].grad, theirs[name].grad, atol=1e-5, rtol=1e-4)


def test_embeddings_instead_of_ids_pass_through(tiny):
    model, inputs = tiny.model, tiny.inputs(["a <image> b"], [picture(84, 84)])
    embeds, mask, _ = cut_embeddings(model, inputs, torch.ones(1000, dtype=torch.bool))
    plain = model.generate(inputs_embeds=embeds, attention_mask=mask, **GREEDY)
    with compress(model, 0.1) as compression:
        assert torch.equal(model.generate(inputs_embeds=embeds, attention_mask=mask, **GREEDY), plain)
    assert len(compression.report) == 0


def test_what_only_a_direct_call_takes(tiny):
    model, image = tiny.model, tiny.inputs(["a <image> b"], [picture(84, 84)])
    with compress(model, 0.3) as compression, torch.no_grad():
        with pytest.raises(InputError, match="logits_to_keep must be a number"):
            model(**image, logits_to_keep=torch.tensor([0]))
        assert model(**image, logits_to_keep=2).logits.shape[1] == 2
        masked = image["attention_mask"].clone()
        places = (image["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
        masked[0, places[::2]] = 0  # the caller hides every other image token
        model(**{**image, "attention_mask": masked})
        assert not compression.report[0].kept[::2].any()
        assert compression.report[0].kept.any()


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "lfm2_vl", "minicpmv4_6"])
def test_features_in_the_output_are_one_tensor_per_image(family):
    """As LLaVA-NeXT's encoder returns them, less what was dropped; that of LFM2-VL has one per view."""
    tiny = FAMILIES[family]()
    inputs = tiny.inputs([f"{tiny.tag} a", f"{tiny.tag} b {tiny.tag}"], [picture(168, 84, seed) for seed in range(3)])
    with torch.no_grad():
        output = tiny.model(**inputs)
        if not hasattr(output, "image_outputs"):
            pytest.skip("this version of transformers hands out no encoder's output")
        stock = output.image_outputs.pooler_output
        with compress(tiny.model, 0.3) as compression:
            ours = tiny.model(**inputs).image_outputs.pooler_output
    assert type(ours) is type(stock) is list
    if len(stock) != 3:
        stock = torch.cat(stock).split([entry.tokens_before for entry in compression.report])
    for mine, full, entry in zip(ours, stock, compression.report, strict=True):
        assert len(mine) == entry.tokens_after < len(full)
        torch.testing.assert_close(mine, full[entry.kept], atol=1e-5, rtol=1e-4)
