"""compress() against independent paths: the unpatched model, embeddings cut by hand, masks, row-by-row runs."""

import pytest
import torch

from calls import GREEDY, IMAGE_ROWS, NEW, generate
from globalcom2 import compress
from independent import cut_embeddings, one_row, reports_keep
from tiny import picture


@pytest.mark.parametrize("method", ["globalcom2", "uniform", "random"])
def test_ratio_one_is_the_unpatched_model_bit_for_bit(tiny, batch, method):
    model = tiny.model
    options = {"output_logits": True, "return_dict_in_generate": True}
    plain, plain_forward = generate(model, batch, **options), model(**batch).logits
    with compress(model, 1.0, method) as compression:
        ours, ours_forward = generate(model, batch, **options), model(**batch).logits
    assert torch.equal(plain.sequences, ours.sequences)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, ours.logits, strict=True))
    assert torch.equal(plain_forward, ours_forward)
    assert compression.report.tokens_before == compression.report.tokens_after


@pytest.mark.parametrize("ratio", [0.1, 0.4])
@pytest.mark.parametrize("options", [
    {}, {"positions": "original"}, {"newlines": "all"}, {"newlines": "none"}, {"thumbnail_weight": 2.0}, {"score": "received"}, {"exact": False}, {"score": "attention"}, {"score": "similarity"},
    {"method": "uniform"}, {"method": "random", "seed": 3}, {"layer": 0}, {"alpha": 0.2, "crop_mass": "max", "temperature": 3.0},
], ids=str)  # fmt: skip
def test_equal_to_cut_embeddings(tiny, batch, ratio, options):
    model = tiny.model
    with compress(model, ratio, **options) as compression:
        ours = generate(model, batch, output_logits=True, return_dict_in_generate=True)
        forward = model(**batch).logits
    assert torch.equal(ours.sequences[:, : batch["input_ids"].shape[1]], batch["input_ids"])
    keep = reports_keep(compression)
    embeds, mask, places = cut_embeddings(model, batch, keep, original_positions=options.get("positions") == "original")
    with torch.no_grad():
        theirs = model(inputs_embeds=embeds, attention_mask=mask, position_ids=places).logits
    torch.testing.assert_close(ours.logits[0], theirs[:, -1], atol=2e-5, rtol=0)
    real = mask.bool()
    with torch.no_grad():
        closed = (
            theirs
            if options.get("positions") == "original"
            else model(inputs_embeds=embeds, attention_mask=mask).logits
        )
    torch.testing.assert_close(forward[real], closed[real], atol=2e-5, rtol=0)
    if options.get("positions") != "original":
        their_tokens = model.generate(inputs_embeds=embeds, attention_mask=mask, **GREEDY)
        assert torch.equal(ours.sequences[:, -NEW:], their_tokens[:, -NEW:])


def test_original_positions_equal_the_full_model_with_the_dropped_tokens_masked(tiny):
    model = tiny.model
    inputs = tiny.inputs(["what? <image> well"], [picture(168, 168)])
    with compress(model, 0.2, positions="original") as compression:
        ours = generate(model, inputs, output_logits=True, return_dict_in_generate=True)
    mask = inputs["attention_mask"].clone()
    mask[inputs["input_ids"] == model.config.image_token_id] = reports_keep(compression).long()
    ids, steps = inputs["input_ids"], []
    for step in range(NEW):
        places = torch.arange(ids.shape[1])[None]
        with torch.no_grad():
            grown = torch.cat([mask, torch.ones(1, step, dtype=mask.dtype)], 1)
            steps.append(
                model(**{**inputs, "input_ids": ids, "attention_mask": grown}, position_ids=places).logits[:, -1]
            )
        ids = torch.cat([ids, ours.sequences[:, inputs["input_ids"].shape[1] + step][:, None]], 1)
    for got, expected in zip(ours.logits, steps, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)


def test_a_mixed_batch_equals_row_by_row(tiny, batch):
    model = tiny.model
    with compress(model, 0.2) as compression:
        together = generate(model, batch)
        assert [image.row for image in compression.report] == IMAGE_ROWS
        entries = list(compression.report)
        for row in range(4):
            alone = generate(model, one_row(batch, row, IMAGE_ROWS))
            assert torch.equal(together[row, -NEW:], alone[0, -NEW:])
            mine = [entry for entry in entries if entry.row == row]
            assert all(torch.equal(a.kept, b.kept) for a, b in zip(mine, compression.report, strict=True))
