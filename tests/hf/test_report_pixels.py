"""The views that a report finds in the caller's own pixels, and what it does where they are gone."""

import copy
import gc
import pickle

import pytest
import torch

from calls import generate
from families import FAMILIES
from globalcom2 import compress
from globalcom2.adapters.videos import frames_layout
from globalcom2.core.layout import unpacked
from globalcom2.hf.pixels import Pixels
from tiny import picture

SIZES = (((168, 168), 20), ((90, 168), 200))


def report_of(made, texts, images):
    inputs = made.inputs(texts, images)
    with compress(made.model, 0.2) as compression:
        generate(made.model, inputs)
    return compression.report, inputs


@pytest.mark.parametrize(
    "name", ["llava_next", "idefics3", "internvl", "ovis2", "llava_onevision", "llama4", "got_ocr2"]
)
def test_each_image_finds_its_own_views(name):
    """A dark and a light image: every view is as dark as its image, whatever lies before it."""
    made = FAMILIES[name]()
    dark, light = (picture(*size).point(lambda v, base=base: base + v // 8) for size, base in SIZES)
    texts = [f"a {made.tag} b {made.tag} c", f"{made.tag} d"]
    report, _inputs = report_of(made, texts, [dark, light, light])
    views = [entry.pixels.views() for entry in report]
    assert [len(own) for own in views] == [entry.layout.views for entry in report]
    brightest = [own.flatten(1).amax(1) for own in views]  # not the mean: some families pad crops with black
    assert float(brightest[0].max()) < float(brightest[1].min())
    if len(views[1]) == len(views[2]):  # LLaVA-OneVision cuts none of several images in a prompt
        assert torch.equal(views[1], views[2])


@pytest.mark.parametrize("name", ["internvl", "idefics3", "llava_next"])
def test_the_thumbnail_comes_first(name):
    made = FAMILIES[name]()
    image = picture(168, 168)
    image.paste("white", (0, 0, 84, 84))  # one corner is white: a crop is, the thumbnail is in a quarter
    report, _inputs = report_of(made, [f"{made.tag} a"], [image])
    views = report[0].pixels.views()
    assert len(views) > 2
    spread = views.flatten(1).std(1)
    rows, cols = report[0].grid
    white = 1 + int(spread[1:].argmin())
    assert white == 1, (rows, cols)
    assert float(spread[0]) > float(spread[1])


def test_pixels_are_not_kept_alive(tiny):
    report, inputs = report_of(tiny, ["<image>"], [picture(168, 168)])
    assert report[0].pixels.views().shape == (5, 3, 84, 84)
    assert pickle.loads(pickle.dumps(report[0])).pixels.views() is None
    assert copy.deepcopy(report[0]).pixels.views() is None
    del inputs
    gc.collect()
    assert report[0].pixels.views() is None


def test_pixels_that_were_written_into_are_those_of_another_call(tiny):
    report, inputs = report_of(tiny, ["<image>"], [picture(168, 168)])
    inputs["pixel_values"].add_(1)
    assert report[0].pixels.views() is None


@pytest.mark.parametrize("name", ["lfm2_vl", "minicpmv4_6", "step3p7"])
def test_pixels_of_another_form_are_none(name):
    made = FAMILIES[name]()
    report, _inputs = report_of(made, [f"{made.tag} a"], [picture(400, 300)])
    assert report[0].layout.views > 1
    assert report[0].pixels.views() is None


def test_a_videos_frames_are_its_views():
    frames = torch.stack([torch.full((2, 3, 84, 84), float(n)) for n in range(4)], 1)
    layout = frames_layout(4, (6, 6), newline=False)
    first, second = (Pixels(frames, [layout] * 2, [0, 0], 1, index) for index in range(2))
    assert first.views()[:, 0, 0, 0].tolist() == second.views()[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_views_that_could_be_of_either_form_are_none():
    """Three prompts and three images: one row of views per prompt, or per image: where both fit, nobody knows."""
    layouts = [unpacked((1, n), (2, 2), thumbnail_last=False) for n in (1, 1, 4)]
    pixels = torch.zeros(3, 5, 3, 8, 8)
    assert [Pixels(pixels, layouts, [0, 0, 1], 3, i).views() is None for i in range(3)] == [False, True, True]
    assert Pixels(pixels, layouts, [0, 1, 2], 3, 1).views() is not None
