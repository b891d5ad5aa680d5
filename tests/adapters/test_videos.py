"""Videos: frames are the crops, the pooled clip guides and is not read; nothing else differs from images."""

import functools
import math

import numpy as np
import pytest
import torch

from families import llava
from globalcom2 import InputError, Views, compress, draw_picture, select
from globalcom2.adapters.families import load_adapter
from globalcom2.adapters.videos import unlikeness
from globalcom2.core.layout import kept_places
from independent import cut_call, reports_keep
from tiny import VIEW, footprint, picture

FRAMES = 8
BUILDERS = [llava.llava_onevision, llava.llava_next_video]
STAND_IN = "~"  # for a video, while the processor looks at the images
METHODS = ["globalcom2", "uniform", "random"]


@functools.cache
def built(builder):
    tiny = builder()
    # A generated tag would count as a placeholder in the unpatched model too.
    tiny.model.generation_config.suppress_tokens = [tiny.model.config.image_token_id, tiny.model.config.video_token_id]
    # transformers itself adds hooks and attributes on a model's first call.
    tiny.model.generate(**inputs_of(tiny, ["<video>"], [clip(0)]), max_new_tokens=2)
    return tiny


@pytest.fixture(params=BUILDERS, ids=lambda builder: builder.__name__)
def tiny(request):
    tiny = built(request.param)
    before = footprint(tiny.model)
    yield tiny
    assert footprint(tiny.model) == before, "the model was left patched"


def clip(seed, frames=FRAMES):
    """Frames (frames, 3, height, width) that differ, as the video processor scales them."""
    pixels = np.stack([np.asarray(picture(VIEW, VIEW, 100 * seed + frame)) for frame in range(frames)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1


def inputs_of(tiny, texts, clips, pictures=()):
    """What the processor returns. Its video processor needs torchvision, so that the clips enter by hand."""
    inputs = tiny.inputs([text.replace("<video>", STAND_IN) for text in texts], list(pictures))
    tok = tiny.processor.tokenizer
    filled = tiny.processor.replace_video_token({"pixel_values_videos": [clips[0].numpy()]}, 0)
    run, stand_in = tok(filled, add_special_tokens=False).input_ids, tok.convert_tokens_to_ids(STAND_IN)
    rows = [
        [token for one in ids[mask.bool()].tolist() for token in (run if one == stand_in else [one])]
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    return {**inputs, **tok.pad({"input_ids": rows}, return_tensors="pt"), "pixel_values_videos": torch.stack(clips)}


def batch(tiny):
    """Two videos, none, one with text on both sides."""
    return inputs_of(tiny, ["a<video>b<video>?", "no video here", "see <video> yes?"], [clip(1), clip(2), clip(3)])


def generate(tiny, inputs, **kwargs):
    options = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    return tiny.model.generate(**inputs, **{**options, **kwargs})


def assert_equal_to_cut_embeddings(tiny, inputs, ratio):
    with compress(tiny.model, ratio) as compression:
        short = generate(tiny, inputs)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(short.sequences[:, :length], inputs["input_ids"])  # the caller's prompt is restored
    report = compression.report
    config = tiny.model.config
    placeholders = torch.isin(inputs["input_ids"], torch.tensor([config.image_token_id, config.video_token_id]))
    assert 0 < report.tokens_after < report.tokens_before == int(placeholders.sum())
    by_hand = generate(tiny, cut_call(tiny.model, inputs, reports_keep(compression)))
    new = short.sequences[:, length:]
    assert torch.equal(new, by_hand.sequences[:, -new.shape[1] :])
    torch.testing.assert_close(torch.stack(short.logits), torch.stack(by_hand.logits), atol=2e-5, rtol=1e-5)
    return report


@pytest.mark.parametrize("num_beams", [1, 2])
def test_ratio_one_is_the_unpatched_model(tiny, num_beams):
    inputs = inputs_of(tiny, ["a<video>b", "<video> cde"], [clip(1), clip(2)])
    plain = generate(tiny, inputs, num_beams=num_beams)
    with compress(tiny.model, 1.0) as compression:
        kept = generate(tiny, inputs, num_beams=num_beams)
        direct = tiny.model(**inputs).logits
    assert torch.equal(kept.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, plain.logits, strict=True))
    assert torch.equal(direct, tiny.model(**inputs).logits)
    assert [(entry.modality, entry.row, entry.retained) for entry in compression.report] == [
        ("video", 0, 1.0),
        ("video", 1, 1.0),
    ]


@pytest.mark.parametrize("ratio", [0.1, 0.4])
def test_equal_to_cut_embeddings(tiny, ratio):
    assert_equal_to_cut_embeddings(tiny, batch(tiny), ratio)


def test_limits_in_tokens_count_a_video_as_an_image(tiny):
    inputs = inputs_of(tiny, ["a<video>b<image>", "<video> c"], [clip(1), clip(2)], [picture(168, 84)])
    reports = []
    for options in ({"max_visual_tokens": 31}, {"max_visual_tokens_per_call": 70}, {"retention_ratio": "auto"}):
        with torch.no_grad(), compress(tiny.model, **options) as compression:
            tiny.model(**inputs)
        reports.append(compression.report)
    assert [(entry.modality, entry.tokens_after) for entry in reports[0]] == [
        ("video", 31),
        ("image", 31),
        ("video", 31),
    ]
    assert reports[1].tokens_after == 70
    assert all(0.05 <= entry.retention_ratio <= 0.25 for entry in reports[2])


@pytest.mark.parametrize("ratio", [0.1, 0.4])
def test_images_and_videos_of_one_call(tiny, ratio):
    """Reports stand in prompt order, whatever order the modalities come in."""
    texts = ["a<video>b<image>?", "<image> and <video> yes?"]
    inputs = inputs_of(tiny, texts, [clip(1), clip(2)], [picture(168, 168, 1), picture(60, 200, 2)])
    report = assert_equal_to_cut_embeddings(tiny, inputs, ratio)
    assert [(entry.modality, entry.row) for entry in report] == [
        ("video", 0), ("image", 0), ("image", 1), ("video", 1)
    ]  # fmt: skip
    assert "2 images, 2 videos" in repr(report)
    for entry in report:
        assert entry.tokens_after == kept_places(entry.layout, ratio)


def test_a_mixed_batch_equals_row_by_row(tiny):
    texts = ["a<video>b<video>?", "no video here", "see <video><image> yes?"]
    clips, pictures = [[clip(1), clip(2)], [], [clip(3)]], [[], [], [picture(168, 168)]]
    inputs = inputs_of(tiny, texts, [*clips[0], *clips[2]], pictures[2])
    with compress(tiny.model, 0.3):
        together = generate(tiny, inputs)
        beams = generate(tiny, inputs, num_beams=3, max_new_tokens=4)
        for row, (text, own, seen) in enumerate(zip(texts, clips, pictures, strict=True)):
            alone = inputs_of(tiny, [text], own, seen) if own else tiny.inputs([text], None)
            for a, b in zip(together.logits, generate(tiny, alone).logits, strict=True):
                torch.testing.assert_close(a[row], b[0], atol=2e-5, rtol=1e-5)
            beams_alone = generate(tiny, alone, num_beams=3, max_new_tokens=4)
            assert torch.equal(beams.sequences[row, -4:], beams_alone.sequences[0, -4:])


def test_a_direct_call_equals_generate(tiny):
    inputs = inputs_of(tiny, ["a <video> b", "<video>"], [clip(1), clip(2)])
    with compress(tiny.model, 0.2), torch.no_grad():
        generated = generate(tiny, inputs, max_new_tokens=1)
        direct = tiny.model(**inputs)
    torch.testing.assert_close(direct.logits[:, -1], generated.logits[0], atol=2e-5, rtol=1e-5)


def test_a_conversation_goes_on_from_a_compressed_cache(tiny):
    inputs = inputs_of(tiny, ["a <video> b"], [clip(1)])
    more = torch.tensor([[40, 41, 42]])
    whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], more], 1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    with compress(tiny.model, 0.2), torch.no_grad():
        first = tiny.model(**inputs, use_cache=True)
        step = tiny.model(input_ids=more, past_key_values=first.past_key_values)
        at_once = tiny.model(**whole)
        torch.testing.assert_close(step.logits[:, -1], at_once.logits[:, -1], atol=2e-5, rtol=1e-5)
        with pytest.raises(InputError, match="pixel_values_videos must not be given when a compressed cache"):
            tiny.model(input_ids=more, past_key_values=first.past_key_values, pixel_values_videos=clip(2)[None])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("newlines", ["counted", "all", "none"])
@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.25, 0.5])
def test_totals_are_those_of_the_ratio_whatever_the_content(tiny, ratio, newlines, method):
    newline = tiny.model.config.model_type == "llava_onevision"
    tokens = 9 * FRAMES
    counted = newline and newlines != "all"
    total = max(1, math.floor(ratio * (tokens + counted) + 0.5)) + (newline and newlines == "all")
    for seed in range(4):
        inputs = inputs_of(tiny, ["<video> a"], [clip(seed)])
        with compress(tiny.model, ratio, method, newlines=newlines) as compression:
            generate(tiny, inputs, max_new_tokens=1)
        (entry,) = compression.report
        assert entry.tokens_before == tokens + newline
        assert entry.tokens_after == total
        assert kept_places(entry.layout, ratio, newlines) == total
        assert len(entry.crop_ratios) == FRAMES
        assert round(sum(entry.crop_ratios) * 9) == int(entry.keep.crops.sum())


@pytest.mark.parametrize("scene", ["grey", "textured"])
@pytest.mark.parametrize("planted", [0, 7])
@pytest.mark.parametrize("score", [None, "logits", "attention", "received", "similarity"])
def test_the_only_frame_with_new_content_gets_the_largest_budget(tiny, planted, scene, score):
    """A static scene with something in one frame, against uniform budgets for frames."""
    noise = torch.randn(FRAMES, 3, VIEW, VIEW, generator=torch.Generator().manual_seed(0)) * 0.02
    frames = noise + (0.5 if scene == "grey" else clip(9, 1))
    frames[planted, :, 28:, 14:70] = clip(5, 1)[0, :, 28:, 14:70]
    inputs = inputs_of(tiny, ["<video> a"], [frames])
    ratios = {}
    for method in ("globalcom2", "uniform"):
        with compress(tiny.model, 0.3, method, score=score) as compression:
            generate(tiny, inputs, max_new_tokens=1)
        ratios[method] = compression.report[0].crop_ratios
    others = [ratio for frame, ratio in enumerate(ratios["globalcom2"]) if frame != planted]
    assert ratios["globalcom2"][planted] > max(others)
    assert ratios["globalcom2"][planted] > ratios["uniform"][planted]
    assert max(ratios["uniform"]) - min(ratios["uniform"]) <= 1 / 9 + 1e-9


def test_frames_get_the_shares_of_the_published_formula():
    """Written down a second time: Gaussian kernels to the mean over frames, VidCom²'s shares at temperature 0.01."""
    generator = torch.Generator().manual_seed(0)
    scene, noise = torch.randn(100, 16, generator=generator), torch.randn(5, 100, 16, generator=generator)
    features = scene + 0.2 * noise
    features[2, :1] *= -1
    unit = features / features.norm(dim=-1, keepdim=True)
    squared = torch.stack([(unit[f] - sum(unit) / 5).norm(dim=-1) ** 2 for f in range(5)])
    alike = sum(torch.exp(-squared / (2 * 2.0**k)) for k in (-3, -2, -1, 0, 1))
    shares = torch.softmax(-alike.mean(1) / 0.01, 0)
    wanted = 0.2 * (1 + shares - shares.mean())
    guidance = unlikeness(features)
    keep = select(Views(torch.rand(5, 100), guidance=guidance), 0.2)
    assert int(keep.crops.sum()) == 100
    assert wanted.max() > 0.3
    assert ((keep.crops.sum(1) / 100 - wanted).abs() <= 0.01).all()
    # With the clip alone to judge, tokens least like it stay.
    alone = select(Views(torch.rand(5, 100), guidance=guidance), 0.2, alpha=1.0).crops
    assert all(alike[f][alone[f]].max() <= alike[f][~alone[f]].min() for f in range(5))


@pytest.mark.parametrize("crop_mass", ["sum", "mean", "max"])
def test_guidance_is_read_where_tokens_are_valid(crop_mass):
    valid = torch.ones(3, 4, dtype=torch.bool)
    valid[0, 2:] = False
    guidance = torch.zeros(3, 4)
    guidance[0, 2:] = 100.0
    guidance[1, :2] = 1.0
    keep = select(Views(torch.zeros(3, 4), valid, guidance=guidance), 0.5, crop_mass=crop_mass)
    assert keep.crops.sum(1).tolist() == [1, 3, 1]
    assert keep.crops[1, :2].all()


def test_scores_of_pooled_tokens_are_means_of_their_patches():
    """A patch that all others attend to shows up at its pooled place in its frame, and nowhere else."""
    for builder in BUILDERS:
        tiny = built(builder)
        adapter, base = load_adapter(tiny.model.config.model_type).videos(), tiny.model.base_model
        rows = torch.zeros(2, 36 + (adapter.cls_index is not None))
        rows[1, -36:][6 * 2 + 5] = 4.0  # of 6 x 6 patches, row 2 and column 5
        scores = adapter.scores(base, rows)
        assert scores.shape == (2, 9)
        assert scores[1].argmax() == 1 * 3 + 2
        assert scores.sum() == scores[1, 5] == 1.0


def test_reports_of_videos_have_no_thumbnail_ratio(tiny):
    inputs = inputs_of(tiny, ["<video> a"], [clip(1)])
    with compress(tiny.model, 0.2, thumbnail_order="score") as compression:
        generate(tiny, inputs, max_new_tokens=1)
    (entry,) = compression.report
    plain = entry.to_dict()
    assert plain["modality"] == "video"
    assert plain["grid"] == [1, FRAMES]
    assert plain["thumbnail_ratio"] is None
    assert entry.thumbnail_map.shape == (3, 3)  # of the pooled clip
    with pytest.raises(InputError, match="entry must be of an image, got one of a video"):
        draw_picture(picture(VIEW, VIEW), entry)


def test_the_published_rounding(tiny):
    inputs = inputs_of(tiny, ["<video> a"], [clip(1)])
    with compress(tiny.model, 0.4, "uniform", exact=False) as compression:
        generate(tiny, inputs, max_new_tokens=1)
    assert compression.report[0].keep.crops.sum(1).tolist() == [int(9 * 0.4)] * FRAMES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values_videos": torch.zeros(2, 3, VIEW, VIEW)}, "pixel_values_videos must be a tensor"),
        ({"pixel_values_videos": [torch.zeros(2, 3, VIEW, VIEW)]}, "got a list"),
        ({"pixel_values_videos": torch.zeros(1, 7, 3, VIEW, VIEW)}, r"must hold \[\d+\] video placeholders for the 1"),
        ({"pixel_values_videos": torch.zeros(2, 8, 3, VIEW, VIEW)}, r"video placeholders for the 2 videos"),
        ({"vision_feature_select_strategy": "wrong"}, "vision_feature_select_strategy must be"),
    ],
)
def test_a_call_that_does_not_fit_says_so(tiny, change, message):
    inputs = inputs_of(tiny, ["<video>"], [clip(1)])
    with compress(tiny.model, 0.2), pytest.raises(InputError, match=message):
        tiny.model.generate(**{**inputs, **change}, max_new_tokens=1)


def test_a_family_without_videos_says_so():
    tiny = llava.granite4_vision()
    inputs = {**tiny.inputs(["<image>"], [picture(300, 200)]), "pixel_values_videos": clip(1)[None]}
    with compress(tiny.model, 0.2), pytest.raises(InputError, match="pixel_values_videos must not come with images"):
        tiny.model.generate(**inputs, max_new_tokens=1)


def test_views_are_guided_by_one_of_both():
    with pytest.raises(InputError, match="guidance must be None where thumbnail_scores guide"):
        Views(torch.rand(2, 9), thumbnail_scores=torch.rand(9), guidance=torch.rand(2, 9))


def test_a_direct_call_padded_on_both_sides_with_full_logits(tiny):
    """Images and videos of one batch: every kept place has the logits of the prompt cut by hand."""
    inputs = dict(
        inputs_of(tiny, ["a<video>b<image>?", "none", "see <video> yes?"], [clip(1), clip(3)], [picture(90, 90)])
    )
    tail = torch.tensor([[60, 61, 62], [60, 0, 0], [60, 61, 0]])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tail], 1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], (tail > 0).long()], 1)
    with compress(tiny.model, 0.3, logits="full") as compression, torch.no_grad():
        logits = tiny.model(**inputs).logits
    with compress(tiny.model, 0.3), torch.no_grad():
        last = tiny.model(**inputs).logits[:, -4:]
    torch.testing.assert_close(last, logits[:, -4:], atol=2e-5, rtol=0)
    config, kept = tiny.model.config, iter(reports_keep(compression).tolist())
    visual = (inputs["input_ids"] == config.image_token_id) | (inputs["input_ids"] == config.video_token_id)
    stays = inputs["attention_mask"].bool() & ~visual
    for row, column in visual.nonzero().tolist():
        stays[row, column] = next(kept)
    call = cut_call(tiny.model, inputs, reports_keep(compression))
    with torch.no_grad():
        expected = tiny.model(**call, position_ids=(call["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits
    torch.testing.assert_close(logits[stays], expected[call["attention_mask"].bool()], atol=5e-5, rtol=1e-5)
