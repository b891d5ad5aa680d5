"""What a call brings: which prompt each image and video belongs to, and in which order they stand."""

import random
from types import SimpleNamespace

import pytest
import torch

from globalcom2 import InputError
from globalcom2.core.layout import unpacked
from globalcom2.hf.visuals import Visuals, _rows, in_prompt_order, visuals_of_call, wanted_tokens

TOKENS = {"image": 7, "video": 8}


def layout(size):
    """A layout whose run has that many placeholders."""
    return unpacked((0, 0), (1, size), thumbnail_last=False)


class Stub:
    """An adapter that takes its layouts from the call."""

    def __init__(self, modality, pixels):
        self.modality, self.pixels = modality, pixels

    def layouts(self, base, call):
        assert base == "base"
        return [layout(size) for size in call[self.pixels]]

    def encode_arguments(self, base, call):
        return {self.pixels: call[self.pixels]}


IMAGES, VIDEOS = Stub("image", "pixel_values"), Stub("video", "pixel_values_videos")


def model():
    return SimpleNamespace(base_model="base", config=SimpleNamespace(image_token_id=7, video_token_id=8))


def prompts(seed, modalities=("image",)):
    """Ids of random prompts, and what was put in: (row, modality, size) in reading order."""
    rng, put, rows = random.Random(seed), [], []
    for row in range(rng.randint(1, 5)):
        ids = [1] * rng.randint(0, 3)
        for _ in range(rng.choice([0, 0, 1, 2, 3])):
            put.append((row, rng.choice(modalities), rng.randint(1, 6)))
            ids += [TOKENS[put[-1][1]]] * put[-1][2] + [1] * rng.randint(0, 2)
        rows.append(ids)
    longest = max(1, *map(len, rows))
    return torch.tensor([[0] * (longest - len(ids)) + ids for ids in rows]), put


@pytest.mark.parametrize("seed", range(40))
def test_each_image_belongs_to_the_prompt_that_holds_its_placeholders(seed):
    ids, put = prompts(seed)
    found = _rows(ids == 7, [layout(size) for _, _, size in put], "image")
    assert found == [row for row, _, _ in put]


@pytest.mark.parametrize(
    ("counts", "sizes"),
    [
        ([4], [5]),  # too few placeholders
        ([4], [3]),  # too many
        ([4, 3], [4]),  # an image is missing
        ([4], [4, 3]),  # a tag is missing
        ([0], [4]),  # no tag at all
        ([2, 2], [4]),  # one image over two prompts
        ([3, 5], [4, 4]),  # the right sum
        ([4, 3], [3, 4]),  # another order
        ([], [4]),
    ],
    ids=str,
)
def test_prompts_and_images_that_do_not_fit_are_refused(counts, sizes):
    longest = max(counts, default=0)
    placeholder = torch.tensor([[n < count for n in range(longest)] for count in counts], dtype=torch.bool)
    message = f"{len(sizes)} videos of this call, got {counts} per prompt".replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(InputError, match=message):
        _rows(placeholder.view(len(counts), longest), [layout(size) for size in sizes], "video")


@pytest.mark.parametrize("seed", range(20))
def test_images_and_videos_of_one_call(seed):
    ids, put = prompts(seed, ("image", "video"))
    sizes = {kind: [size for _, k, size in put if k == kind] for kind in TOKENS}
    call = {"pixel_values": sizes["image"] or None, "pixel_values_videos": sizes["video"] or None, "other": 1}
    found = visuals_of_call(model(), call, ids, [IMAGES, VIDEOS])
    assert [visuals.adapter.modality for visuals in found] == [kind for kind in TOKENS if sizes[kind]]
    for visuals in found:
        kind = visuals.adapter.modality
        assert visuals.arguments == {visuals.adapter.pixels: sizes[kind]}
        assert visuals.lengths == sizes[kind]
        assert visuals.rows == [row for row, k, _ in put if k == kind]
        assert visuals.placeholder.tolist() == [[i == TOKENS[kind] for i in row] for row in ids.tolist()]
    if found:
        entries = [[(kind, n) for n in range(len(sizes[kind]))] for kind in TOKENS if sizes[kind]]
        left = {kind: iter(range(len(sizes[kind]))) for kind in TOKENS}
        assert in_prompt_order(found, entries) == [(kind, next(left[kind])) for _, kind, _ in put]


def test_a_call_without_pixels_has_none():
    assert visuals_of_call(model(), {"pixel_values": None}, torch.ones(1, 3, dtype=torch.long), [IMAGES, VIDEOS]) == []


def test_videos_beside_images_are_refused_where_they_are_not_compressed():
    ids, call = torch.tensor([[7, 7, 8]]), {"pixel_values": [2], "pixel_values_videos": [1]}
    with pytest.raises(InputError, match="pixel_values_videos must not come with images"):
        visuals_of_call(model(), call, ids, [IMAGES])
    assert visuals_of_call(model(), {"pixel_values_videos": [1]}, ids, [IMAGES]) == []


def test_what_the_callers_mask_shows_of_each():
    ids = torch.tensor([[1, 7, 7, 1], [7, 1, 7, 7]])
    visuals = Visuals(IMAGES, {}, [layout(size) for size in (2, 3)], ids == 7, [0, 1])
    assert visuals.shown(None) is None
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0]])
    assert [part.tolist() for part in visuals.shown(mask)] == [[False, True], [True, True, False]]


@pytest.mark.parametrize("seed", range(20))
def test_tokens_that_stay_are_the_text_and_what_was_kept(seed):
    ids, put = prompts(seed, ("image", "video"))
    rng = random.Random(seed)
    lists = {kind: [rng.random() < 0.5 for _, k, size in put if k == kind for _ in range(size)] for kind in TOKENS}
    left = {TOKENS[kind]: iter(kept) for kind, kept in lists.items()}
    expected = [[next(left[i]) if i in left else True for i in row] for row in ids.tolist()]
    adapters = {"image": IMAGES, "video": VIDEOS}
    found = [Visuals(adapters[kind], {}, [], ids == TOKENS[kind], []) for kind in TOKENS]
    kept = [torch.tensor(lists[kind], dtype=torch.bool) for kind in TOKENS]
    assert wanted_tokens(ids, found, kept).tolist() == expected
