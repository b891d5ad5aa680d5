"""Scores of images that keep their resolution, against attention computed by hand in the unpatched tower.

Each tower has its own order of patches, and its own way to keep several images apart.
"""

from itertools import pairwise, product
from math import ceil

import pytest
import torch
from transformers import AttentionInterface

from globalcom2 import CompressionConfig, Method, select
from globalcom2.adapters.families import load_adapter
from globalcom2.adapters.windows import guide_size
from globalcom2.hf.compression import Compression
from native_cases import case_of, left_clean, picture_grids
from tiny import picture

TOWERS = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "paddleocr_vl", "ernie4_5_vl_moe", "kimi_k25", "mistral3"]
ROWS = ("paddleocr_vl", "kimi_k25", "mistral3")
"""Towers that read patches row by row; all others read blocks of 2 x 2, a token each."""
IMAGES = [picture(72, 120, 1), picture(48, 40, 2)]
"""15 x 9 tokens, which are two windows, and 5 x 6."""
SEEN = []


def by_hand(module, query, key, value, attention_mask, scaling=None, **_):
    """An attention kernel that keeps what a softmax is made of."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = query @ key.mT * scale
    logits = logits if attention_mask is None else logits + attention_mask
    SEEN.append((module, logits, key))
    return (logits.softmax(-1) @ value).transpose(1, 2), None


AttentionInterface.register("by_hand", by_hand)


@pytest.fixture(params=TOWERS)
def case(request):
    with left_clean(case_of(request.param)) as case:
        yield case


def inputs_of(case, images):
    return case.tiny.inputs([case.tiny.tag * len(images)], images)


def heard(case, module, images):
    """Of each picture in that module, logits (heads, queries, keys) and keys (heads, patches, dim), tower unpatched."""
    base = case.model.base_model
    adapter = load_adapter(case.name)
    tower = adapter.tower(base) if hasattr(base, "visual") else base.vision_tower
    before = tower.config._attn_implementation
    tower.set_attn_implementation("by_hand")
    SEEN.clear()
    try:
        with torch.no_grad():
            base.get_image_features(**adapter.encode_arguments(base, inputs_of(case, images)))
    finally:
        tower.set_attn_implementation(before)
    found = [(logits[0], key[0]) for own, logits, key in SEEN if own is module]
    SEEN.clear()
    if case.name != "mistral3":
        return found
    ((logits, key),) = found
    edges = torch.tensor([0, *(4 * height * width for height, width in picture_grids(images))]).cumsum(0).tolist()
    return [(logits[:, a:b, a:b], key[:, a:b]) for a, b in pairwise(edges)]


def of_tokens(name, values, height, width):
    """Values (patches, ...) in the tower's order as a map (height, width, ...) of tokens, each the mean of its patches."""
    if name in ROWS:
        where = [(y // 2, x // 2) for y, x in product(range(2 * height), range(2 * width))]
    elif name == "qwen2_5_vl":  # windows of 2 x 2 tokens, row by row; tokens in them row by row
        where = []
        for top, left in product(range(0, height, 2), range(0, width, 2)):
            own = product(range(top, min(top + 2, height)), range(left, min(left + 2, width)))
            where += [place for place in own for _ in range(4)]
    else:
        where = [place for place in product(range(height), range(width)) for _ in range(4)]
    tokens = torch.zeros(height, width, *values.shape[1:])
    for value, place in zip(values, where, strict=True):
        tokens[place] += value / 4
    return tokens


def on_picture(views, values):
    """Values (windows, tokens, ...) of an image as a map (height, width, ...) of its tokens."""
    (rows, cols), (height, width) = views.grid, views.token_grid

    def stitched(x):
        return x.unflatten(0, (rows, cols)).unflatten(2, (height, width)).transpose(1, 2).flatten(0, 1).flatten(1, 2)

    shown = stitched(views.valid)
    return stitched(values)[: int(shown.any(1).sum()), : int(shown.any(0).sum())]


def views_of(case, images, method="globalcom2", **options):
    """The views of each picture, with a batch axis of one."""
    found = {}

    def noting(views, known_grid):
        found[on_picture(views, views.scores[0]).shape] = views
        return select(views, 0.5)

    with torch.no_grad(), Compression(case.model, CompressionConfig(0.5, method, **options), noting):
        case.model(**inputs_of(case, images))
    return [found[size] for size in picture_grids(images)]


def maps_of(case, images, **options):
    """Of each picture, a map (height, width) of its scores, and one of its guide's."""
    every = views_of(case, images, **options)
    return [(on_picture(own, own.scores[0]), own.guide_scores[0].unflatten(0, own.guide_grid)) for own in every]


def pooled(scores, height, width):
    """Means over equal parts of a map, every cell that a part touches counted whole."""
    rows, cols = scores.shape
    means = torch.zeros(height, width)
    for y, x in product(range(height), range(width)):
        across = slice(y * rows // height, ceil((y + 1) * rows / height))
        means[y, x] = scores[across, x * cols // width : ceil((x + 1) * cols / width)].mean()
    return means


def test_scores_of_several_images_are_those_of_attention_by_hand(case):
    """Two pictures in one call, of two windows and of one; their guides by their own scores."""
    adapter = load_adapter(case.name)
    base = case.model.base_model
    found = heard(case, adapter.attention(base, adapter.default_layer(base)), IMAGES)
    assert len(found) == 2
    received = [logits.softmax(-1).mean((0, 1)) for logits, _ in found]
    mean_query = [logits.mean((0, 1)) for logits, _ in found]
    for score, expected in (("received", received), ("mean_query", mean_query)):
        maps = maps_of(case, IMAGES, score=score)
        for values, (own, guide), size in zip(expected, maps, picture_grids(IMAGES), strict=True):
            tokens = of_tokens(case.name, values, *size)
            torch.testing.assert_close(own, tokens, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(guide, pooled(tokens, *guide_size(*size)), atol=1e-5, rtol=1e-4)


def test_guides_of_their_own_change_no_scores_and_have_those_of_a_picture_alone(case):
    pooled_guides = maps_of(case, IMAGES, score="received")
    together = maps_of(case, IMAGES, score="received", guide="thumbnail")
    for image, (own, guide), (alone, other) in zip(IMAGES, together, pooled_guides, strict=True):
        torch.testing.assert_close(own, alone, atol=1e-5, rtol=1e-4)
        ((_, single),) = maps_of(case, [image], score="received", guide="thumbnail")
        torch.testing.assert_close(guide, single, atol=1e-5, rtol=1e-4)
        assert guide.shape == other.shape
        assert (guide - other).abs().max() > 1e-4


def test_similarity_is_that_of_the_whole_image(case):
    base = case.model.base_model
    adapter = load_adapter(case.name)
    with torch.no_grad():
        encoded = base.get_image_features(**adapter.encode_arguments(base, inputs_of(case, IMAGES)))
    found = maps_of(case, IMAGES, score="similarity")
    for features, (own, _) in zip(encoded.pooler_output, found, strict=True):
        unit = torch.nn.functional.normalize(features, dim=-1)
        expected = -unit @ torch.nn.functional.normalize(features.mean(0), dim=-1)
        torch.testing.assert_close(own.flatten(), expected, atol=1e-5, rtol=0)


def test_methods_read_keys_layers_and_features_of_the_same_tokens(case):
    """Keys by hand; a further layer that is the layer of the scores; features whose similarity the scores are."""
    adapter, base = load_adapter(case.name), case.model.base_model
    layer = adapter.default_layer(base) % len(adapter.attentions(base))
    by_hand = heard(case, adapter.attention(base, layer), IMAGES)
    toy = Method("toy", lambda views, ratio: None, reads=("features", "keys"), layers=(layer,))
    for guide in ("pooled", "thumbnail"):
        every = views_of(case, IMAGES, toy, score="received", guide=guide)
        similar = maps_of(case, IMAGES, score="similarity", guide=guide)
        for views, (_, key), (similarity, _) in zip(every, by_hand, similar, strict=True):
            size = similarity.shape
            expected = of_tokens(case.name, key.mean(0), *size)
            torch.testing.assert_close(on_picture(views, views.keys[0, 1:]), expected, atol=1e-5, rtol=1e-4)
            assert torch.equal(views.layer_scores[0, 0, 1:], views.scores[0])
            features = on_picture(views, views.features[0, 1:]).flatten(0, 1)
            cosine = torch.cosine_similarity(features, features.mean(0, keepdim=True))
            torch.testing.assert_close(cosine.view(size), -similarity, atol=1e-5, rtol=0)
            assert torch.equal(views.crop_features, views.features[:, 1:])
            for told in (views.keys[0, 0], views.features[0, 0], views.layer_scores[0, 0, 0]):
                assert not told.any(), "nothing of a guide"
