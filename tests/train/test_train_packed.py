"""Padding-free collators: several samples in one row, told apart by positions that restart or by numbers in the mask."""

import pytest
import recipes
import torch
from transformers import DataCollatorWithFlattening

from globalcom2 import compress


def samples(tiny):
    """Each sample's call of its own, without padding."""
    return [recipes.batch(tiny, (row,))[0] for row in (0, 1)]


def flattened(tiny, **options):
    """Both samples in one row, as transformers' padding-free collator lays them, with their pictures."""
    both, _ = recipes.batch(tiny)
    rows = [
        {"input_ids": one["input_ids"][0], "labels": recipes.text_labels(tiny.model, one)[0]} for one in samples(tiny)
    ]
    batch = DataCollatorWithFlattening(return_tensors="pt", **options)(rows)
    kinds = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
    pictures = {name: value for name, value in both.items() if name not in kinds}
    if tiny.model.config.model_type == "idefics3":  # (rows, images, ...): all images are in the one row now
        pictures = joined(tiny)
    return {**batch, **pictures}


def joined(tiny):
    found = [{name: value for name, value in one.items() if name.startswith("pixel")} for one in samples(tiny)]
    views = [(pixels["pixel_values"][0], pixels["pixel_attention_mask"][0]) for pixels in found]
    return {
        "pixel_values": torch.cat([view for view, _ in views])[None],
        "pixel_attention_mask": torch.cat([mask for _, mask in views])[None],
    }


def alone(tiny, ratio, positions="closed"):
    """Logits of each sample's own compressed call. It has a mask: without one, gaps in positions would tell of samples."""
    outputs = []
    for one in samples(tiny):
        with compress(tiny.model, ratio, positions=positions), torch.no_grad():
            outputs.append(tiny.model(**one, use_cache=False).logits[0])
    return outputs


def test_the_plain_model_keeps_samples_apart(family):
    """What compressed calls must do holds uncompressed."""
    packed = flattened(family)
    labels = packed.pop("labels")
    assert labels.shape == packed["input_ids"].shape
    with torch.no_grad():
        ours = family.model(**packed, use_cache=False).logits[0]
        theirs = torch.cat([family.model(**one, use_cache=False).logits[0] for one in samples(family)])
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)


@pytest.mark.parametrize("options", [{}, {"return_flash_attn_kwargs": True}, {"return_seq_idx": True}])
@pytest.mark.parametrize("positions", ["closed", "original"])
@pytest.mark.parametrize("ratio", [0.999, 0.25])
def test_restarting_positions(family, ratio, positions, options):
    """Each sample's logits are those of its own call."""
    packed = flattened(family, **options)
    labels = packed.pop("labels")
    expected = alone(family, ratio, positions)
    with compress(family.model, ratio, positions=positions) as compression, torch.no_grad():
        ours = family.model(**packed, use_cache=False).logits[0]
        assert len(compression.report) == 2
        loss = family.model(**packed, labels=labels, use_cache=False).loss
    torch.testing.assert_close(ours, torch.cat(expected), atol=2e-4, rtol=0)
    assert torch.isfinite(loss)


def test_loss_of_a_packed_row(family):
    packed = flattened(family)
    with compress(family.model, 0.25) as compression, torch.no_grad():
        ours = family.model(**packed, use_cache=False).loss
        keeps = [image.kept for image in compression.report]
    sums, count = 0.0, 0
    for one, keep in zip(samples(family), keeps, strict=True):
        labels = recipes.text_labels(family.model, one)
        with torch.no_grad():
            sums -= recipes.logps_by_hand(family.model, one, keep, labels).sum()
        count += int((labels != recipes.IGNORED).sum())
    torch.testing.assert_close(ours, sums / count, atol=2e-4, rtol=0)


def language_model(model):
    """The part that reads embeddings."""
    return (
        model.base_model.get_decoder() if hasattr(model.base_model, "get_decoder") else model.base_model.language_model
    )


def seen_by_language_model(model, **call):
    """What reaches the language model besides embeddings."""
    seen = {}
    note = lambda module, args, kwargs: seen.update(kwargs)  # noqa: E731
    handle = language_model(model).register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**call, use_cache=False)
    finally:
        handle.remove()
    return seen


def test_flash_attention_arguments(family):
    """Borders of samples move with the tokens: flash attention reads them instead of a mask."""
    packed = flattened(family, return_flash_attn_kwargs=True, return_seq_idx=True)
    with compress(family.model, 0.25) as compression:
        seen = seen_by_language_model(family.model, **packed)
        lost = [int(image.tokens_before - image.tokens_after) for image in compression.report]
    lengths = [one["input_ids"].shape[1] - less for one, less in zip(samples(family), lost, strict=True)]
    borders = [0, lengths[0], sum(lengths)]
    assert seen["position_ids"][0].tolist() == [*range(lengths[0]), *range(lengths[1])]
    for side in "qk":
        assert seen[f"cu_seq_lens_{side}"].tolist() == borders
        assert seen[f"cu_seq_lens_{side}"].dtype == torch.int32
        assert seen[f"max_length_{side}"] == max(lengths)
    assert seen["seq_idx"].tolist() == [[0] * lengths[0] + [1] * lengths[1]]


def test_masks_with_numbers_of_samples(family):
    """A mask of 1s and 2s, as trainers with their own attention use it: numbers stay with their tokens."""
    packed = flattened(family)
    packed.pop("labels")
    numbers = torch.cat([torch.full_like(one["input_ids"], row + 1) for row, one in enumerate(samples(family))], 1)
    with compress(family.model, 0.25) as compression:
        seen = seen_by_language_model(family.model, **packed, attention_mask=numbers)
        lost = [int(image.tokens_before - image.tokens_after) for image in compression.report]
    lengths = [one["input_ids"].shape[1] - less for one, less in zip(samples(family), lost, strict=True)]
    assert seen["attention_mask"].tolist() == [[1] * lengths[0] + [2] * lengths[1]]
    assert seen["position_ids"][0].tolist() == [*range(lengths[0]), *range(lengths[1])]


def test_numbers_without_positions(llava_chat):
    """Only a mask: positions are those that the model gives itself, one count for the whole row."""
    packed = flattened(llava_chat)
    packed.pop("labels"), packed.pop("position_ids")
    numbers = torch.cat([torch.full_like(one["input_ids"], row + 1) for row, one in enumerate(samples(llava_chat))], 1)
    with compress(llava_chat.model, 0.25):
        seen = seen_by_language_model(llava_chat.model, **packed, attention_mask=numbers)
    assert sorted(set(seen["attention_mask"][0].tolist())) == [1, 2]
