"""Several samples in one row (padding-free training): each has the positions and the neighbours that it has alone."""

import copy
import functools

import pytest
import torch

from families import FAMILIES
from globalcom2 import InputError, compress
from tiny import picture

# Families whose images are told by ids and pixels alone, so that samples can be laid end to end.
NAMES = ("llava_next", "llava_onevision", "internvl", "qianfan_ocr", "aya_vision", "cohere2_vision", "ovis2")
SIZES = [(168, 168), (60, 200), (90, 90)]


@functools.cache
def built(name):
    return FAMILIES[name]()


@pytest.fixture(params=NAMES)
def family(request):
    return built(request.param)


def samples(tiny, texts=("a {} b", "next: {}?? and more", "third {}")):
    return [tiny.inputs([text.format(tiny.tag)], [picture(*size, 5)]) for text, size in zip(texts, SIZES, strict=True)]


def packed(parts):
    """One row, positions that start again, and no mask, as padding-free collators build it."""
    lengths = [part["input_ids"].shape[1] for part in parts]
    row = {"input_ids": torch.cat([part["input_ids"] for part in parts], 1)}
    row["position_ids"] = torch.cat([torch.arange(length) for length in lengths])[None]
    pixels = [part["pixel_values"] for part in parts]
    if pixels[0].ndim == 5:  # images of one call are filled up to one number of views
        most = max(x.shape[1] for x in pixels)
        pixels = [torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 0, 0, most - x.shape[1])) for x in pixels]
    row["pixel_values"] = torch.cat(pixels)
    for name in ("image_sizes", "batch_num_images"):
        if name in parts[0]:
            row[name] = torch.cat([part[name] for part in parts])
    return row, lengths


@torch.no_grad()
def alone(tiny, parts, ratio, **options):
    logits = []
    with compress(tiny.model, ratio, **options):
        for part in parts:
            logits.append(tiny.model(**part).logits[0])
    return torch.cat(logits)


@pytest.mark.parametrize("positions", ["closed", "original"])
@pytest.mark.parametrize("ratio", [0.25, 0.999])
def test_samples_of_one_row_equal_each_alone(family, ratio, positions):
    tiny, parts = family, samples(family)
    row, _ = packed(parts)
    slides = "sliding_attention" in (getattr(tiny.model.config.get_text_config(), "layer_types", None) or ())
    if positions == "original" and slides:  # one mask of blocks does not fit layers of two kinds
        with compress(tiny.model, ratio, positions=positions), pytest.raises(InputError, match="must be 'closed'"):
            tiny.model(**row, use_cache=False)
        return
    with compress(tiny.model, ratio, positions=positions), torch.no_grad():
        logits = tiny.model(**row, use_cache=False).logits[0]
    torch.testing.assert_close(logits, alone(tiny, parts, ratio, positions=positions), atol=5e-5, rtol=1e-4)


def two_rows(tiny, parts):
    """A row of two samples, and one of the third and of a text; and the length of the text."""
    first, _ = packed(parts[:2])
    second, _ = packed(parts[2:])
    missing = first["input_ids"].shape[1] - second["input_ids"].shape[1]
    filler = tiny.inputs(["w" * missing], None)["input_ids"][:, -missing:]
    ids = torch.cat([first["input_ids"], torch.cat([second["input_ids"], filler], 1)])
    places = torch.cat([second["position_ids"], torch.arange(missing)[None]], 1)
    most = first["pixel_values"].shape[1] - second["pixel_values"].shape[1]
    pixels = torch.nn.functional.pad(second["pixel_values"], (0, 0, 0, 0, 0, 0, 0, most))
    call = {
        "input_ids": ids,
        "position_ids": torch.cat([first["position_ids"], places]),
        "pixel_values": torch.cat([first["pixel_values"], pixels]),
        "image_sizes": torch.cat([first["image_sizes"], second["image_sizes"]]),
    }
    return call, missing


@pytest.mark.parametrize("how", ["call", "config", "text config", "checkpointing"])
def test_rows_of_several_samples_in_a_batch(llava, how):
    """Rows lose different numbers of tokens: their padding must not hide the samples, whoever switches the cache off."""
    tiny = llava._replace(model=copy.deepcopy(llava.model))
    parts = samples(tiny)
    call, missing = two_rows(tiny, parts)
    if how == "call":
        call["use_cache"] = False
    elif how == "config":
        tiny.model.config.use_cache = False
    elif how == "text config":
        tiny.model.config.get_text_config().use_cache = False
    else:
        tiny.model.gradient_checkpointing_enable()
        tiny.model.train()
    with compress(tiny.model, 0.25) as compression:
        logits = tiny.model(**call).logits.detach()
        kept = [entry.tokens_before - entry.tokens_after for entry in compression.report]
    own = alone(llava, parts, 0.25).split([part["input_ids"].shape[1] - k for part, k in zip(parts, kept, strict=True)])
    torch.testing.assert_close(logits[0, -len(own[0]) - len(own[1]) :], torch.cat(own[:2]), atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(logits[1, -missing - len(own[2]) : -missing], own[2], atol=5e-5, rtol=1e-4)


def test_a_mask_with_sample_numbers_keeps_them(tiny):
    parts = samples(tiny)
    row, lengths = packed(parts)
    numbers = torch.cat([torch.full((n,), i + 1) for i, n in enumerate(lengths)])[None]
    numbers = torch.nn.functional.pad(numbers, (2, 3))
    call = {
        **row,
        "input_ids": torch.nn.functional.pad(row["input_ids"], (2, 3)),
        "position_ids": torch.nn.functional.pad(row["position_ids"], (2, 3)),
        "attention_mask": numbers,
    }
    with compress(tiny.model, 0.25) as compression:
        short = compression.shorten_call(tiny.model, call, direct=True).call
    kept = [length - e.tokens_before + e.tokens_after for length, e in zip(lengths, compression.report, strict=True)]
    expected = [n for i, count in enumerate(kept) for n in [i + 1] * count] + [0] * 3
    assert short["attention_mask"].tolist() == [expected]
    assert short["position_ids"].tolist() == [[n for count in kept for n in range(count)] + [0] * 3]


def test_ends_of_samples_for_flash_kernels_are_counted_anew(tiny):
    parts = samples(tiny)
    row, lengths = packed(parts)
    ends = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    flash = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": max(lengths), "max_length_k": max(lengths)}
    numbers = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None].int()
    with compress(tiny.model, 0.25) as compression:
        short = compression.shorten_call(tiny.model, {**row, **flash, "seq_idx": numbers}, direct=True).call
    kept = [length - e.tokens_before + e.tokens_after for length, e in zip(lengths, compression.report, strict=True)]
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        assert short[name].dtype == torch.int32
        assert short[name].diff().tolist() == kept
    assert short["max_length_q"] == short["max_length_k"] == max(kept)
    assert short["seq_idx"][0].bincount().tolist() == kept
    assert short["input_ids"].shape[1] == sum(kept)
    two = {name: torch.cat([value, value]) for name, value in row.items()}
    with (
        compress(tiny.model, 0.25) as compression,
        pytest.raises(InputError, match="cu_seq_lens_q must come with one row"),
    ):
        compression.shorten_call(tiny.model, {**two, **flash}, direct=True)


def test_original_positions_need_an_attention_that_takes_a_mask_of_blocks(tiny):
    model = copy.deepcopy(tiny.model)
    row, _ = packed(samples(tiny))
    model.config.get_text_config()._attn_implementation_internal = "flash_attention_2"
    refused = pytest.raises(InputError, match="positions must be 'closed' for rows of several samples")
    with compress(model, 0.25, positions="original") as compression, refused:
        compression.shorten_call(model, row, direct=True)
