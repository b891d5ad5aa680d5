"""Reports, pictures and drawings of images that keep their resolution, which have a guide and no thumbnail."""

import gc
import html
import json
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image

import native_more_cases
from families.native import NATIVE
from globalcom2 import InputError, compress, draw_page, draw_picture
from globalcom2.adapters.families import load_adapter
from globalcom2.drawing.page import kept_page
from globalcom2.drawing.panel import Panel
from globalcom2.hf.unshortened import unshortened_entries
from native_cases import PICTURES, case_of, left_clean, tiny_of
from tiny import picture

FORMS = {
    "qwen2_5_vl": "blocks of patches, frame after frame for each channel",
    "paddleocr_vl": "patches row by row",
    "mistral3": "padded pictures",
    "gemma4": "padded patches, channels last",
    "cosmos3_edge": "channels last",
    "muse_glimmer": "frames first",
    "video_llama_3": "a patch is a token",
}


def entries_of(name, images):
    """Reports' entries of a call at a ratio of 1, which runs no model, and the call."""
    made = tiny_of(name) if name in NATIVE else native_more_cases.case_of(name)[0]
    inputs = dict(made.inputs([f"a {made.tag} b {made.tag} c"], images))
    entries = unshortened_entries(made.model, inputs, [load_adapter(made.model.config.model_type)])
    assert len(entries) == len(images)
    return entries, inputs


@pytest.mark.parametrize("name", FORMS)
def test_the_picture_is_rebuilt_from_the_pixels_of_the_call(name):
    """Colour by colour a straight line from the picture that was given, resized by Pillow if the processor resized it."""
    images = [picture(96, 72, 1), picture(72, 120, 2)]
    entries, inputs = entries_of(name, images)
    for entry, image in zip(entries, images, strict=True):
        found = entry.pixels.picture().permute(1, 2, 0).numpy()
        resized = image.resize((found.shape[1], found.shape[0]), Image.Resampling.BICUBIC)
        for colour, values in enumerate(np.moveaxis(np.asarray(resized, float), -1, 0)):
            slope, start = np.polyfit(values.ravel(), found[..., colour].ravel(), 1)
            assert slope > 0
            assert np.abs(values * slope + start - found[..., colour]).max() < (0.02 if name == "gemma4" else 1e-3)
        assert entry.pixels.views() is None
    del inputs
    gc.collect()
    assert [entry.pixels.picture() for entry in entries] == [None, None]


def test_pictures_that_were_written_into_or_pickled_are_gone():
    entries, inputs = entries_of("qwen2_vl", PICTURES[1:3])
    assert pickle.loads(pickle.dumps(entries[0])).pictures is None
    assert entries[1].pictures is not None
    inputs["pixel_values"].add_(1)
    assert entries[1].pictures is None


@pytest.fixture(scope="module")
def reported():
    """A report of four images at 20 %, and what their call was given."""
    with left_clean(case_of("qwen2_5_vl")) as case, compress(case.model, 0.2) as compression:
        case.model.generate(**case.batch, max_new_tokens=1, do_sample=False)
    return compression.report, case.batch


def pooled(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mean over each cell of a coarser grid; cells overlap by a row or column where sides do not divide."""
    (height, width), (rows, cols) = scores.shape, size
    spans = [[(n * a // b, -(-(n + 1) * a // b)) for n in range(b)] for a, b in ((height, rows), (width, cols))]
    return np.array([[scores[y0:y1, x0:x1].mean() for x0, x1 in spans[1]] for y0, y1 in spans[0]])


def test_a_report_tells_windows_and_a_guide(reported):
    report, _ = reported
    lines = str(report).splitlines()
    assert lines[1] == "  0: ImageReport(image, row 0, 2 x 2 windows, 270 -> 54 tokens)"
    assert lines[2] == "  1: ImageReport(image, row 1, 1 window, 30 -> 6 tokens)"
    assert "thumbnail" not in str(report)
    assert "crop" not in str(report)
    for entry, image in zip(report, PICTURES, strict=True):
        height, width = image.height // 8, image.width // 8
        told = json.loads(json.dumps(entry.to_dict()))
        assert told["thumbnail_ratio"] is told["thumbnail_grid"] is None
        assert told["guide_grid"] == [max(1, round(height / 3)), max(1, round(width / 3))]
        assert told["tokens_before"] == height * width
        assert told["tokens_after"] == max(1, int(0.2 * height * width + 0.5))
        valid = entry.layout.valid.sum(1)
        assert (
            round(sum(ratio * int(n) for ratio, n in zip(entry.crop_ratios, valid, strict=True))) == entry.tokens_after
        )
        flat = entry.scores.flatten()[entry.layout.slots].view(height, width).numpy()
        np.testing.assert_allclose(entry.thumbnail_map.numpy(), pooled(flat, tuple(told["guide_grid"])), atol=1e-6)


def words_of(page: str) -> str:
    """What a page shows and says: its text and labels, without names of classes."""
    labels = " ".join(re.findall(r'aria-label="([^"]*)"', page))
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    return " ".join(html.unescape(labels + re.sub(r"<[^>]*>", " ", body)).split())


def test_the_page_shows_the_guide_and_the_kept_tokens(reported):
    report, _ = reported
    page = draw_page(None, list(report), names=list("abcd"))
    words = words_of(page)
    assert "Thumbnail" not in words
    assert "thumbnail" not in words
    assert "crop" not in words
    for told in ("Guide commands, is not read", "2 x 2 windows keep 54", "1 window keeps 6", "window in row 2, column 1",
                 "Heat map of the guide's scores", "Borders and budgets of windows", "its window's budget"):  # fmt: skip
        assert told in words, told
    numbers = json.loads(re.search(r'class="numbers">(.*?)</script>', page, re.S)[1])
    for entry, (guide, *windows) in zip(report, numbers, strict=True):
        assert guide["kind"] == "guide"
        assert set(guide["state"]) == {"g"}
        assert len(guide["state"]) == len(guide["scores"]) == entry.thumbnail_map.numel()
        assert sum(window["state"].count("k") for window in windows) == entry.tokens_after
        assert sum(window["count"] for window in windows) == entry.tokens_before
    assert re.search(r"\.picture-3-0 \{ background: .*url\(data:image/jpeg", page)


def test_pictures_of_windows_laid_together_are_the_image(reported):
    report, _ = reported
    for entry, image in zip(report, PICTURES, strict=True):
        pictures = entry.pictures
        rows, cols = entry.grid
        assert len(pictures.crops) == rows * cols
        sheet = pictures.sheet(entry.grid)
        side = pictures.crops[0].width // entry.layout.token_grid[1]
        height, width = entry.layout.size
        own = sheet.crop((0, 0, width * side, height * side)).resize(image.size)
        assert np.corrcoef(np.asarray(own, float).ravel(), np.asarray(image, float).ravel())[0, 1] > 0.99


def test_drawings_name_the_guide(reported, tmp_path):
    report, _ = reported
    for number, entry in enumerate(report[:2]):
        figure = draw_picture(None if number % 2 else PICTURES[number], entry, tmp_path / f"{number}.png")
        axes = [own.get_title(loc="left") for own in figure.axes if own.get_title(loc="left")]
        assert axes[0] == "guide: commands, is not read"
        assert "window" in axes[1]
        said = " ".join(" ".join([*axes, *(text.get_text() for text in figure.texts)]).split())
        assert "It commands and is not" in said
        assert "thumbnail" not in said
        assert "crop" not in said
        assert (tmp_path / f"{number}.png").stat().st_size > 1000


def test_at_a_ratio_of_one_there_is_no_guide_to_show():
    entries, _inputs = entries_of("qwen2_vl", PICTURES[:1] * 2)
    entry = entries[0]
    with pytest.raises(InputError, match="at a ratio of 1, which reads no scores"):
        _ = entry.thumbnail_map
    panel = Panel(entry, entry.pictures)
    assert panel.guide is panel.commander is None
    assert "Guide" not in words_of(kept_page([panel]))
    assert "2 x 2 windows keep 270" in words_of(kept_page([panel]))
    figure = draw_picture(None, entry)
    said = " ".join(text.get_text() for text in figure.texts)
    assert "guide" not in said
    assert "The image in windows" in said
    assert torch.equal(entry.kept, torch.ones(270, dtype=torch.bool))
