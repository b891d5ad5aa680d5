"""Videos of families whose images keep their resolution: Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5.

A left-padded batch of four unlike prompts (a video, an image and a video, none, two videos of unlike size and length). Real
image processors; video processors need torchvision, so clips enter as patches.
"""

import re
from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from families.native import NATIVE
from globalcom2 import InputError, compress
from globalcom2.hf.cache import CACHE
from native_cases import GREEDY, LOGITS, NEW, Case, grown, left_clean
from native_oracles import RECURRENT, cut_logits, follows, holed
from tiny import picture

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
STAND_IN = "~"
PATCH_VALUES = 3 * 2 * 4 * 4
"""Channels, frames, and px of a patch."""
SETTINGS = {
    "a tenth": (0.1, {}),
    "two fifths": (0.4, {"score": "received", "guide": "thumbnail"}),
}


class Clip(NamedTuple):
    """A video of random patches: steps in time, height and width in tokens, and seconds between its steps."""

    steps: int
    height: int
    width: int
    seconds: float = 0.5

    @property
    def tokens(self):
        return self.steps * self.height * self.width

    def patches(self):
        generator = torch.Generator().manual_seed(100 * self.steps + 10 * self.height + self.width)
        return torch.randn(4 * self.tokens, PATCH_VALUES, generator=generator)


CLIPS = [Clip(4, 6, 4), Clip(3, 5, 3, 2.0), Clip(2, 3, 7), Clip(5, 4, 2, 3.0)]
"""In Qwen2.5-VL, the last one's time goes further than its rows and columns do."""
PICTURE = picture(72, 56, 1)
ROWS = [
    ("what ~ is", [], CLIPS[:1]),
    ("see{image} and~?", [PICTURE], CLIPS[1:2]),
    ("nothing to see here", [], []),
    ("look: ~ or ~ well", [], CLIPS[2:]),
]
SEEN = [
    ("video", 0, CLIPS[0]),
    ("image", 1, None),
    ("video", 1, CLIPS[1]),
    ("video", 3, CLIPS[2]),
    ("video", 3, CLIPS[3]),
]


def run_of(tiny, clip):
    """Ids of a clip as the family's own processor writes them, times of frames included."""
    about = {
        "video_grid_thw": torch.tensor([[clip.steps, 2 * clip.height, 2 * clip.width]]),
        "video_metadata": [SimpleNamespace(fps=2 / clip.seconds, frames_indices=list(range(2 * clip.steps)))],
    }
    text = tiny.processor.replace_video_token(about, 0)
    if "<|vision_start|>" not in text:
        text = f"<|vision_start|>{text}<|vision_end|>"
    return tiny.processor.tokenizer(text, add_special_tokens=False).input_ids


def inputs_of(tiny, rows, patches=None):
    """What the processor returns for rows of (text, images, clips); `patches` instead of those of the clips."""
    images, clips = ([one for row in rows for one in row[i]] for i in (1, 2))
    inputs = dict(tiny.inputs([text.format(image=tiny.tag) for text, _, _ in rows], images))
    tok, left = tiny.processor.tokenizer, iter(clips)
    stand_in = tok.convert_tokens_to_ids(STAND_IN)
    ids = [
        [
            token
            for one in own[mask.bool()].tolist()
            for token in (run_of(tiny, next(left)) if one == stand_in else [one])
        ]
        for own, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    inputs |= tok.pad({"input_ids": ids}, return_tensors="pt")
    inputs["mm_token_type_ids"] = torch.tensor(tiny.processor.create_mm_token_type_ids(inputs["input_ids"]))
    if clips:
        inputs["video_grid_thw"] = torch.tensor([[clip.steps, 2 * clip.height, 2 * clip.width] for clip in clips])
        inputs["pixel_values_videos"] = torch.cat([clip.patches() for clip in clips]) if patches is None else patches
        if tiny.model.config.model_type == "qwen2_5_vl":
            inputs["second_per_grid_ts"] = [clip.seconds for clip in clips]
    return inputs


@cache
def case_of(name):
    tiny = NATIVE[name]()
    tiny.processor.video_processor = SimpleNamespace(merge_size=2, temporal_patch_size=2)
    rows = [inputs_of(tiny, [row]) for row in ROWS]
    tiny.model.generate(**rows[2], max_new_tokens=2)  # transformers itself adds hooks on a model's first call
    return Case(name, tiny, inputs_of(tiny, ROWS), rows)


@pytest.fixture(params=FAMILIES)
def case(request):
    with left_clean(case_of(request.param)) as case:
        yield case


def keep_of(model, inputs, report):
    """Places (batch, length) that a report says are kept: all text, and tokens of images and videos."""
    config, keep = model.config, torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    visual = torch.isin(inputs["input_ids"], torch.tensor([config.image_token_id, config.video_token_id]))
    keep[visual] = torch.cat([entry.kept for entry in report])
    return keep


@pytest.mark.parametrize("setting", SETTINGS)
def test_equal_to_both_oracles(case, setting):
    """Budgets, the caller's ids in front, eight greedy tokens and their logits, and a direct call."""
    model, batch = case.model, case.batch
    ratio, options = SETTINGS[setting]
    with compress(model, ratio, **options) as compression:
        out = model.generate(**batch, **LOGITS)
        report = list(compression.report)
        with torch.no_grad():
            direct = model(**batch).logits[:, -1]
    assert [(entry.modality, entry.row) for entry in report] == [seen[:2] for seen in SEEN]
    for entry, (_, _, clip) in zip(report, SEEN, strict=True):
        tokens = 9 * 7 if clip is None else clip.tokens
        assert entry.tokens_before == tokens
        assert entry.tokens_after == max(1, int(ratio * tokens + 0.5))
        assert (entry.layout.guide_grid is None) == (clip is not None)
        assert clip is None or (len(entry.crop_ratios), *entry.layout.token_grid) == clip[:3]
    assert torch.equal(out.sequences[:, : case.length], batch["input_ids"])
    answers, logits = out.sequences[:, case.length :], torch.stack(out.logits, 1)
    torch.testing.assert_close(direct, logits[:, 0], atol=case.tolerance, rtol=0)
    keep = keep_of(model, batch, report)
    with torch.no_grad():
        for row, one in enumerate(case.rows):
            expected = cut_logits(model, one, case.real(keep, row), answers[row])
            torch.testing.assert_close(logits[row], expected, atol=case.tolerance, rtol=0)
            assert follows(expected, answers[row], case.suppressed)
    if case.name not in RECURRENT:
        stock = model.generate(**holed(model, batch, keep), **LOGITS)
        assert torch.equal(stock.sequences, out.sequences)
        torch.testing.assert_close(torch.stack(stock.logits, 1), logits, atol=case.tolerance, rtol=0)


def test_ratio_one_is_the_unpatched_model_bit_for_bit(case):
    model, options = case.model, {**LOGITS, "max_new_tokens": 3}
    plain = model.generate(**case.batch, **options)
    with compress(model, 1.0) as compression:
        ours = model.generate(**case.batch, **options)
    assert torch.equal(plain.sequences, ours.sequences)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, ours.logits, strict=True))
    assert [entry.modality for entry in compression.report] == [seen[0] for seen in SEEN]
    assert compression.report.tokens_before == compression.report.tokens_after
    shown = [entry.modality for entry in compression.report if entry.pixels.picture() is not None]
    assert shown == ["image"]


def test_beams_and_several_returns_equal_row_by_row(case):
    model, beams = case.model, {**GREEDY, "max_new_tokens": 3, "num_beams": 3, "num_return_sequences": 2}
    with compress(model, 0.2):
        ours = model.generate(**case.batch, **beams)
        for row in (1, 3):
            theirs = model.generate(**case.rows[row], **beams)
            assert torch.equal(ours[2 * row : 2 * row + 2, -3:], theirs[:, -3:])


def test_a_second_turn_on_the_cache(case):
    """Equal to one pass over the whole conversation, in `generate` and in a direct call."""
    model = case.model
    more = torch.randint(3, 180, (4, 5), generator=torch.Generator().manual_seed(4))
    with compress(model, 0.2) as compression:
        first = model.generate(**case.batch, **LOGITS)
        keep = keep_of(model, case.batch, compression.report)
        whole = grown(case.batch, torch.cat([first.sequences, more], 1))
        text = {k: v for k, v in whole.items() if not re.match("pixel_|image_|video_|second_", k)}
        second = model.generate(**text, **LOGITS, **{CACHE: first[CACHE]})
        with torch.no_grad():
            filled = model(**case.rows[3], use_cache=True)
            direct = model(input_ids=more[:1], **{CACHE: filled[CACHE]}).logits[0, -1]
            at_once = model(**grown(case.rows[3], torch.cat([case.rows[3]["input_ids"], more[:1]], 1))).logits[0, -1]
        torch.testing.assert_close(direct, at_once, atol=case.tolerance, rtol=0)
        with pytest.raises(InputError, match="pixel_values_videos must not be given when a compressed cache"):
            model(**case.rows[3], **{CACHE: filled[CACHE]})
    answers = second.sequences[:, whole["input_ids"].shape[1] :]
    keep = torch.cat([keep, keep.new_ones(4, NEW + 5)], 1)
    real = torch.cat([case.batch["attention_mask"].bool(), keep.new_ones(4, NEW + 5)], 1)
    with torch.no_grad():
        for row, one in enumerate(case.rows):
            conversation = grown(one, whole["input_ids"][row][real[row]][None])
            expected = cut_logits(model, conversation, keep[row][real[row]], answers[row])
            torch.testing.assert_close(torch.stack(second.logits, 1)[row], expected, atol=case.tolerance, rtol=0)
            assert follows(expected, answers[row], case.suppressed)


@pytest.mark.parametrize("score", ["similarity", "received", "mean_query"])
def test_frames_have_the_scores_of_the_same_pictures_alone(case, score):
    """A frame of up to 14 tokens a side, against an image of the same patches: order and pooling are the same."""
    clip, tiny = Clip(3, 6, 5), case.tiny
    video = inputs_of(tiny, [("~ well", [], [clip])])
    images = inputs_of(tiny, [("{image} {image} {image} well", [picture(40, 48, n) for n in range(3)], [])])
    images["pixel_values"] = clip.patches()
    with compress(case.model, 0.3, "uniform", score=score) as compression:
        case.model.generate(**video, max_new_tokens=1)
        (entry,) = compression.report
        case.model.generate(**images, max_new_tokens=1)
    alone = torch.stack([image.scores[0] for image in compression.report])
    torch.testing.assert_close(entry.scores, alone, atol=1e-5, rtol=1e-4)
    assert float(alone.std(1).min()) > 1e-4


def test_the_order_of_windows_is_undone(monkeypatch):
    """With every layer reading whole images and frames, windows change nothing but the order of patches."""
    with left_clean(case_of("qwen2_5_vl")) as case:
        tower, vision = case.model.base_model.visual, case.model.config.vision_config
        inputs = inputs_of(case.tiny, [("{image} ~ or ~?", [picture(120, 144, 1)], CLIPS[:2])])
        found = []
        for size in (16, 8000):
            for owner in (tower, vision):
                monkeypatch.setattr(owner, "window_size", size)
                monkeypatch.setattr(owner, "fullatt_block_indexes", [0, 1, 2])
            with compress(case.model, 0.3, "uniform", score="received") as compression:
                case.model.generate(**inputs, max_new_tokens=1)
            found.append([entry.scores for entry in compression.report])
        for windowed, whole in zip(*found, strict=True):
            torch.testing.assert_close(windowed, whole, atol=1e-7, rtol=1e-4)
            assert float((whole[:, 1:] - whole[:, :-1]).abs().max()) > 1e-4


@pytest.mark.parametrize("planted", [0, 4])
@pytest.mark.parametrize("score", [None, "received"])
def test_the_only_frame_with_new_content_gets_the_largest_budget(case, planted, score):
    """A static scene with something else in one frame, next to a clip of another size."""
    clip, other = Clip(6, 8, 6), CLIPS[2]
    scene, new = (
        Clip(1, 8, 6).patches(),
        torch.randn(4 * 8 * 6, PATCH_VALUES, generator=torch.Generator().manual_seed(9)),
    )
    frames = scene.repeat(6, 1, 1) + 0.02 * clip.patches().view(6, -1, PATCH_VALUES)
    frames[planted, 40:80] = new[40:80]
    inputs = inputs_of(case.tiny, [("~ or ~?", [], [other, clip])], torch.cat([other.patches(), frames.flatten(0, 1)]))
    with compress(case.model, 0.3, score=score) as compression:
        case.model.generate(**inputs, max_new_tokens=1)
    entry = compression.report[1]
    others = [ratio for frame, ratio in enumerate(entry.crop_ratios) if frame != planted]
    assert entry.crop_ratios[planted] > max(others)
    assert entry.tokens_after == int(0.3 * clip.tokens + 0.5)


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_that_do_not_fit(name):
    """Refused before the tower runs."""
    with left_clean(case_of(name)) as case, compress(case.model, 0.2) as compression:
        model, one = case.model, case.rows[3]
        grids, types = one["video_grid_thw"], one["mm_token_type_ids"]
        calls = [
            ({k: v for k, v in one.items() if k != "video_grid_thw"}, "video_grid_thw must be"),
            ({**one, "video_grid_thw": grids[0]}, "video_grid_thw must be"),
            ({**one, "video_grid_thw": grids * torch.tensor([0, 1, 1])}, "one frame at least"),
            ({**one, "video_grid_thw": grids - torch.tensor([0, 1, 0])}, "multiples of 2"),
            ({**one, "video_grid_thw": grids[:1]}, "pixel_values_videos must hold"),
            ({**one, "pixel_values_videos": one["pixel_values_videos"][:-4]}, "pixel_values_videos must hold"),
            (
                {**one, "video_grid_thw": grids[:1], "pixel_values_videos": CLIPS[2].patches()},
                "fit together|placeholders",
            ),
            ({**one, "mm_token_type_ids": types * 0}, "mm_token_type_ids must be 2"),
            ({**one, "mm_token_type_ids": types.clamp(max=1)}, "mm_token_type_ids must be 1"),
            ({k: v for k, v in one.items() if k != "mm_token_type_ids"}, "mm_token_type_ids must be given"),
        ]
        if name == "qwen2_5_vl":
            calls.append(({**one, "second_per_grid_ts": [1.0]}, "second_per_grid_ts must fit together"))
        ran = []
        handle = model.base_model.visual.register_forward_pre_hook(lambda *_: ran.append(1))
        try:
            for call, message in calls:
                for run in (lambda call: model.generate(**call, **GREEDY), lambda call: model(**call)):
                    with pytest.raises(InputError, match=message):
                        run(call)
        finally:
            handle.remove()
        assert not ran
        assert len(compression.report) == 0
