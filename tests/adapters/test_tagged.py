"""Families with tags between the views: grids from ids, order of tokens after shuffling, and what is refused."""

import functools
import math

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.llama4.modeling_llama4 import pixel_shuffle

from families import FAMILIES
from globalcom2 import compress
from globalcom2.adapters.families import load_adapter
from globalcom2.adapters.tagged import block_means, grid_of
from globalcom2.errors import InputError
from tiny import picture

NAMES = ["idefics3", "smolvlm", "llama4", "ovis2"]
SIZES = [(360, 240), (240, 360), (112, 112), (30, 20), (500, 90), (90, 500), (224, 224), (230, 112), (112, 230)]


@functools.cache
def built(name):
    return FAMILIES[name]()


@pytest.fixture(params=NAMES)
def tagged(request):
    return built(request.param)


def layouts(tiny, inputs):
    return load_adapter(tiny.model.config.model_type).layouts(tiny.model.base_model, dict(inputs))


def processors_grid(tiny, image):
    """What the image processor itself says it did."""
    name = tiny.model.config.model_type
    if name in ("idefics3", "smolvlm"):
        info = tiny.processor.image_processor([[image]], return_row_col_info=True)
        return info["rows"][0][0], info["cols"][0][0]
    info = tiny.processor.image_processor([image], return_tensors="pt")
    rows, cols = info["aspect_ratios" if name == "llama4" else "grids"][0].tolist()
    return (0, 0) if rows * cols == 1 else (rows, cols)


def test_grids_are_those_of_the_processor(tagged):
    images = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    wanted = [processors_grid(tagged, image) for image in images]
    assert len(set(wanted)) > 3
    tag = tagged.tag
    inputs = tagged.inputs([f"{tag}{tag}\n{tag} a", "none", "\n\n" + f"{tag}\n" * 4, f"b {tag} {tag}\n\n"], images)
    found = layouts(tagged, inputs)
    assert [layout.grid for layout in found] == wanted
    assert all(layout.known_grid for layout in found)


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_a_token_stands_for_the_block_of_patches_that_its_score_is_taken_from(name, factor):
    side = 4 * factor
    numbers = torch.arange(side * side, dtype=torch.float32)[None].repeat(2, 1)
    if name == "llama4":
        shuffled = pixel_shuffle(numbers[..., None], 1 / factor)
    elif name == "ovis2":
        shuffled = through_ovis2(numbers, factor)
    else:
        shuffled = built(name).model.model.connector.pixel_shuffle(numbers[..., None], factor)
    torch.testing.assert_close(block_means(numbers, factor), shuffled.mean(-1))


def through_ovis2(numbers, factor):
    """The tower's own reshaping, with numbered patches in place of its transformer's features."""
    tower = built("ovis2").model.model.vision_tower
    width, before = tower.config.hidden_size, tower.config.hidden_stride
    transformer, head, norm = tower.transformer, tower.head_linear, tower.head_norm
    try:
        tower.config.hidden_stride = factor
        tower.transformer = Numbered(numbers[..., None].expand(-1, -1, width))
        tower.head_linear = tower.head_norm = torch.nn.Identity()
        return tower(torch.zeros(1)).last_hidden_state[..., ::width]
    finally:
        tower.config.hidden_stride = before
        tower.transformer, tower.head_linear, tower.head_norm = transformer, head, norm


class Numbered(torch.nn.Module):
    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, pixels, **_):
        return BaseModelOutput(last_hidden_state=self.features)


def test_the_last_token_of_llama4s_tower_is_its_cls():
    tiny = FAMILIES["llama4"]()
    inputs = tiny.inputs([f"{tiny.tag} a"], [picture(300, 200)])
    with compress(tiny.model, 0.3, score="attention") as compression:
        fused = tiny.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    tiny.model.set_attn_implementation("eager")
    with torch.no_grad():
        # transformers 5.23 finds the attentions behind the hidden states only.
        asked = {"output_attentions": True, "output_hidden_states": True, "return_dict": True}
        maps = tiny.model.vision_model(inputs["pixel_values"], **asked).attentions[-1]
    row = maps[-1, :, -1, :-1].mean(0)  # of the thumbnail, the last view
    torch.testing.assert_close(compression.report[0].thumbnail_scores, block_means(row[None], 2)[0])
    with compress(tiny.model, 0.3, score="attention"):
        eager = tiny.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert torch.equal(fused, eager)


def test_the_uniform_baseline_keeps_the_best_tokens_of_every_view(tagged):
    """Scores by hand, views in prompt order: catches a thumbnail taken for a crop, in scores or in places."""
    inputs = tagged.inputs([f"{tagged.tag} a {tagged.tag}"], [picture(300, 200), picture(200, 300)])
    encoded = features_of(tagged.model, inputs)
    features = encoded.last_hidden_state if encoded.pooler_output is None else encoded.pooler_output
    features = torch.cat(list(features)).reshape(-1, 16, features[0].shape[-1])
    scores = -torch.cosine_similarity(features, features.mean(1, keepdim=True), dim=-1)
    with compress(tagged.model, 0.3, "uniform", score="similarity") as compression:
        tagged.model.generate(**inputs, max_new_tokens=1)
    kept = torch.cat([image.kept for image in compression.report]).view(-1, 16)
    best = scores.argsort(dim=1, descending=True).argsort(dim=1) < kept.sum(1, keepdim=True)
    assert torch.equal(kept, best)


def features_of(model, inputs):
    names = ("pixel_values", "pixel_attention_mask")
    with torch.no_grad():
        return model.base_model.get_image_features(**{n: inputs[n] for n in names if n in inputs}, return_dict=True)


def test_direct_calls_equal_generate(tagged):
    inputs = tagged.inputs([f"{tagged.tag} a {tagged.tag}"], [picture(300, 200), picture(200, 300)])
    with compress(tagged.model, 0.3), torch.no_grad():
        direct = tagged.model(**inputs).logits[:, -1]
        out = tagged.model.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
    torch.testing.assert_close(direct, out.logits[0], atol=2e-5, rtol=1e-5)


def row_end(tiny):
    """The id that ends a row of crops."""
    tok = tiny.processor.tokenizer
    ends = {"llama4": "<|tile_y_separator|>", "ovis2": "<IMG_ROW>"}
    return tok.encode(ends.get(tiny.model.config.model_type, "\n"))[0]


def test_tags_that_tell_no_grid_give_equal_ratios_and_a_warning(tagged):
    inputs = tagged.inputs([f"{tagged.tag} a", f"{tagged.tag} b"], [picture(300, 200), picture(300, 200)])
    expected = [layout.grid for layout in layouts(tagged, inputs)]
    ids = inputs["input_ids"]
    ids[1, (ids[1] == row_end(tagged)).nonzero()[0]] = tagged.processor.tokenizer.encode("?")[0]
    first, second = layouts(tagged, inputs)
    assert (first.grid, first.known_grid) == (expected[0], True)
    assert (second.grid, second.known_grid) == ((1, math.prod(expected[1])), False)
    with pytest.warns(UserWarning, match="crops"), compress(tagged.model, 0.3) as compression:
        tagged.model.generate(**inputs, max_new_tokens=1)
    ratios = compression.report[1].crop_ratios
    assert max(ratios) - min(ratios) <= 1 / 16  # equal but for the tokens that a total leaves over
    assert compression.report[0].tokens_after == compression.report[1].tokens_after


def refused(tiny, inputs, match):
    with compress(tiny.model, 0.3), pytest.raises(InputError, match=match):
        tiny.model.generate(**inputs, max_new_tokens=1)


def test_bad_input_is_refused(tagged):
    def inputs():
        return tagged.inputs([f"{tagged.tag} a"], [picture(300, 200)])

    bad, image = inputs(), tagged.model.config.image_token_id
    bad["input_ids"][0, (bad["input_ids"][0] == image).nonzero()[0]] = 7
    refused(tagged, bad, "16 image placeholders per view.*got a run of 15")

    bad = inputs()
    whole = bad["pixel_values"]
    bad["pixel_values"] = whole[:, :-1] if whole.ndim == 5 else whole[:-1]
    bad.pop("pixel_attention_mask", None)
    refused(tagged, bad, "pixel_values must hold one view per run")

    bad = inputs()
    bad["pixel_values"] = whole[..., :-14]
    refused(tagged, bad, "pixel_values must be")

    bad, ids = inputs(), inputs()["input_ids"]
    # Nothing but text after the last view and before the first.
    places = (ids[0] == image).nonzero().flatten()
    ids[0, places[-1] + 1 :] = ids[0, : places[0]] = 7
    bad["input_ids"] = ids
    refused(tagged, bad, "input_ids must hold .*Build prompts with the processor")


def test_partly_masked_views_are_refused():
    tiny = built("idefics3")
    inputs = tiny.inputs([f"{tiny.tag} a"], [picture(300, 200)])
    inputs["pixel_attention_mask"][0, 0, -14:] = 0
    refused(tiny, inputs, "pixel_attention_mask must be 1")


def test_grid_of():
    assert grid_of([True]) == (1, 1)
    assert grid_of([True, False, False]) == (1, 3)
    assert grid_of([True, True, True]) == (3, 1)
    assert grid_of([True, False, True, False]) == (2, 2)
    assert grid_of([True, False, True]) is None
    assert grid_of([True, True, False, True]) is None
