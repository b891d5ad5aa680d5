"""What a method reads of the vision tower, and what it merges, against the unpatched model."""

import functools

import pytest
import test_syncs
import torch
import torch.nn.functional as F

import toys
from families import FAMILIES
from globalcom2 import InputError, UnsupportedModelError, compress
from globalcom2.core.ranking import Merge, Ranking
from tiny import picture


@functools.cache
def built(name):
    return FAMILIES[name]()


def looking(monkeypatch, **wants):
    """A method that ranks by scores and notes the views that it is given."""
    seen = []

    def toy(views, ratio):
        seen.append(views)
        return Ranking(views.thumbnail_scores, views.scores, torch.full(views.scores.shape[:2], ratio))

    toys.register(monkeypatch, toy, **wants)
    return seen


def call(tiny, images=None, **options):
    images = images or [picture(168, 84)]
    with torch.no_grad(), compress(tiny.model, 0.3, "toy", **options) as compression:
        tiny.model(**tiny.inputs([tiny.tag] * len(images), images))
    return compression.report


def tower_inputs(module, run):
    """What the attention modules of a tower are given, per layer, while `run` runs."""
    noted = []
    hooks = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs: noted.append(kwargs.get("hidden_states", args[0] if args else None)),
            with_kwargs=True,
        )
        for block in module
    ]
    with torch.no_grad():
        run()
    [hook.remove() for hook in hooks]
    return noted


def heads(x, projection, count):
    return projection(x).unflatten(-1, (count, -1))


# What a method reads


def test_scores_of_further_layers_are_those_of_the_tower(monkeypatch):
    tiny = built("llava_next")
    seen = looking(monkeypatch, layers=(0, -1), score="attention")
    call(tiny, [picture(168, 168)])
    (views,) = seen[1:]  # the first were an example
    tower = tiny.model.model.vision_tower
    kernel = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        rows = tower(
            tiny.inputs(["<image>"], [picture(168, 168)])["pixel_values"][0], output_attentions=True
        ).attentions
    tower.set_attn_implementation(kernel)
    rows = [row[:, :, 0, 1:].mean(1) for row in rows]
    assert views.score_type == "attention"
    torch.testing.assert_close(views.layer_scores[0], torch.stack([rows[0], rows[-1]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(views.scores[0], rows[-2][1:], atol=1e-6, rtol=0)


def test_keys_are_those_of_the_score_layer(monkeypatch):
    tiny = built("llava_next")
    seen = looking(monkeypatch, reads=("keys", "features"))
    images = [picture(168, 168)]
    call(tiny, images, layer=-3)
    pixels = tiny.inputs(["<image>"], images)["pixel_values"][0]
    layers = tiny.model.model.vision_tower.encoder.layers
    attention = layers[-3].self_attn
    (states,) = tower_inputs([attention], lambda: tiny.model.model.vision_tower(pixels))
    with torch.no_grad():
        keys = heads(states, attention.k_proj, 4).mean(2)[:, 1:]
        hidden = tiny.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(seen[-1].keys[0], keys, atol=1e-6, rtol=0)
    torch.testing.assert_close(seen[-1].features[0], hidden, atol=1e-5, rtol=0)


def test_keys_are_averaged_over_the_patches_of_a_token(monkeypatch):
    """Aya Vision: 2 x 2 patches per token, thumbnail last, no [CLS]."""
    tiny = built("aya_vision")
    seen = looking(monkeypatch, reads=("keys",))
    images = [picture(224, 112)]
    call(tiny, images)
    pixels = tiny.inputs(["<image>"], images)["pixel_values"]
    tower = tiny.model.model.vision_tower
    attention = tower.encoder.layers[-1].self_attn
    (states,) = tower_inputs([attention], lambda: tower(pixels))
    with torch.no_grad():
        patches = heads(states, attention.k_proj, 4).mean(2).unflatten(1, (8, 8)).movedim(-1, 1)
        tokens = F.avg_pool2d(patches, 2).flatten(2).mT
    assert seen[-1].keys.shape == (1, 3, 16, 12)
    torch.testing.assert_close(seen[-1].keys[0], tokens[[2, 0, 1]], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "first"), [("llava_next", 0), ("internvl", -1)])
def test_cls_is_that_of_the_towers_output(monkeypatch, name, first):
    tiny = built(name)
    seen = looking(monkeypatch, reads=("cls",))
    side = 84 if name == "llava_next" else 112
    images = [picture(2 * side, side)]
    call(tiny, images)
    pixels = tiny.inputs([tiny.tag], images)["pixel_values"]
    pixels = pixels[0] if pixels.ndim == 5 else pixels
    with torch.no_grad():
        cls = tiny.model.model.vision_tower(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(seen[-1].cls[0], cls.roll(0 if first == 0 else 1, 0), atol=1e-5, rtol=0)
    hooks = tiny.model.model.vision_tower._forward_hooks
    assert not [hook for hook in hooks.values() if "outputs_of" in hook.__qualname__]


def test_reading_more_changes_no_answer(monkeypatch):
    tiny = built("llava_next")
    looking(monkeypatch)
    plain = call(tiny)[0].kept
    looking(monkeypatch, layers=(0,), reads=("features", "keys", "cls"))
    assert torch.equal(call(tiny)[0].kept, plain)


def test_frames_come_after_their_mean(monkeypatch):
    from globalcom2.adapters.llava_next_video import LlavaNextVideoVideosAdapter
    from globalcom2.adapters.videos import frames_layout
    from globalcom2.hf.saliency import _cls_by_view
    from globalcom2.hf.visuals import Visuals

    layout = frames_layout(3, (2, 2), newline=False)
    visuals = Visuals(LlavaNextVideoVideosAdapter(), {}, [layout], torch.zeros(1, 12), [0])
    frames = torch.randn(3, 5)
    (cls,) = _cls_by_view(frames, visuals)
    torch.testing.assert_close(cls, torch.cat([frames.mean(0)[None], frames]))


# The score that a method is defined on


def test_the_methods_score_is_used_where_the_caller_names_none(monkeypatch):
    tiny = built("llava_next")
    seen = looking(monkeypatch, score="received")
    call(tiny)
    assert seen[-1].score_type == "received"
    call(tiny, score="attention")
    assert seen[-1].score_type == "attention"
    seen = looking(monkeypatch)
    call(tiny)
    assert seen[-1].score_type == "logits"


@pytest.mark.parametrize(
    ("name", "wants", "options", "error", "message"),
    [
        ("got_ocr2", {"score": "attention"}, {}, UnsupportedModelError, "'toy', which is defined on score 'attention': .*got_ocr2"),
        ("got_ocr2", {"reads": ("keys",)}, {}, UnsupportedModelError, "'toy', which reads keys: .*got_ocr2"),
        ("got_ocr2", {"layers": (0,)}, {}, InputError, "for method 'toy', which compares layers, got 'similarity'"),
        ("aya_vision", {"layers": (0,)}, {}, InputError, "Pass score='mean_query'"),
        ("aya_vision", {"reads": ("cls",)}, {}, UnsupportedModelError, r"aya_vision, which has no \[CLS\], got 'toy'"),
        ("llama4", {"reads": ("cls",)}, {}, UnsupportedModelError, r"llama4, whose tower does not return \[CLS\]"),
        ("lfm2_vl", {"reads": ("keys",)}, {}, UnsupportedModelError, "no keys for lfm2_vl, whose views differ in size"),
        ("llava_next", {"layers": (9,)}, {}, InputError, r"'toy', which reads layer 9: layer must be in \[-4, 3\]"),
        ("llava_next", {"score": "fame"}, {}, InputError, "score of method 'toy' must be one of logits.*got 'fame'"),
        ("llava_next", {}, {"layer": 9}, InputError, r"^layer must be in \[-4, 3\]"),
    ],
)  # fmt: skip
def test_what_a_family_cannot_give_is_told_before_a_call(monkeypatch, name, wants, options, error, message):
    looking(monkeypatch, **wants)
    with pytest.raises(error, match=message):
        compress(built(name).model, 0.3, "toy", **options)


@pytest.mark.parametrize("wants", [{"reads": ("features",)}, {"layers": (0,), "score": "mean_query"}])
def test_a_thumbnail_of_its_own_size_is_told_in_the_call(monkeypatch, wants):
    tiny = built("lfm2_vl")
    looking(monkeypatch, **wants)
    with pytest.raises(InputError, match=r"method must be one that reads scores alone, .* got 'toy', which compares"):
        call(tiny, [picture(300, 200)])


def test_an_answer_that_cannot_be_used_is_told_at_once_or_in_the_call(monkeypatch):
    tiny = built("llava_next")
    toys.register(monkeypatch, lambda views, ratio: Ranking(views.thumbnail_scores, views.scores[:, 1:]))
    with pytest.raises(InputError, match=r"method 'toy' .* as crops, got float32 \(1, 3, 4\)"):
        compress(tiny.model, 0.3, "toy")
    toys.register(monkeypatch, lambda views, ratio: Ranking(views.thumbnail_scores, views.scores / 0))
    with pytest.raises(InputError, match=r"method 'toy' .* must return crops that are finite"):
        call(tiny)


# Merging


def merging(monkeypatch):
    """Every dropped token goes into the kept one of its view that is next to it in raster order, with odd weights."""

    def toy(views, ratio):
        batch, crops, tokens = views.scores.shape
        weight = 0.25 + torch.arange(batch * (1 + crops) * tokens).view(batch, 1 + crops, tokens) % 7 / 10
        into = torch.arange(tokens).expand(batch, 1 + crops, -1).clone()
        into[:, :, 1::2] = into[:, :, :-1:2]  # odd ones into the even one before
        into[:, :, 0::4] = -1
        even = -100.0 * (torch.arange(tokens) % 2)  # even ones are kept first, of odd ones the last
        own = None if views.thumbnail_scores is None else views.thumbnail_scores.clamp(-1, 1) + even
        return Ranking(
            own, views.scores.clamp(-1, 1) + even, torch.full((batch, crops), ratio), merge=Merge(into, weight)
        )

    toys.register(monkeypatch, toy, merges=True)


def into_and_weight(crops, tokens):
    """What `merging` says, as plain functions of image, view and token."""

    def into(view, token):
        return -1 if token % 4 == 0 else token - token % 2

    def weight(image, view, token):
        return 0.25 + ((image * (1 + crops) + view) * tokens + token) % 7 / 10

    return into, weight


def summed(features, kept, image, crops, layout_valid):
    """features (1 + crops, tokens, ...) with the sums in place of kept tokens', one by one."""
    tokens = features.shape[1]
    into, weight = into_and_weight(crops, tokens)
    out = features.clone()
    for view in range(1 + crops):
        for token in range(tokens):
            if not kept[view][token]:
                continue
            own = weight(image, view, token) if into(view, token) < 0 else 1.0
            out[view, token] = features[view, token] * own
            for other in range(tokens):
                if not kept[view][other] and layout_valid[view][other] and into(view, other) == token:
                    out[view, token] += features[view, other] * weight(image, view, other)
    return out


def masks(entry):
    keep, layout = entry.keep, entry.layout
    thumbnail = torch.ones(1, layout.tokens, dtype=torch.bool)
    kept = torch.cat([keep.thumbnail[None], keep.crops]).tolist()
    return kept, torch.cat([thumbnail, layout.valid]).tolist()


@pytest.mark.parametrize("sizes", [[(168, 168)], [(168, 168), (50, 200), (92, 200), (168, 168)]])
def test_the_towers_features_are_merged_before_the_projector(monkeypatch, sizes):
    tiny = built("llava_next")
    merging(monkeypatch)
    images = [picture(*size, seed) for seed, size in enumerate(sizes)]
    inputs = tiny.inputs(["<image>"] * len(images), images)
    with compress(tiny.model, 0.6, "toy") as compression:
        output = compression.shorten_call(tiny.model, dict(inputs)).call["mm_encoder_outputs"]["image"]
        made = torch.cat(output.pooler_output)
        report = compression.report
    base, expected, members = tiny.model.model, [], {}
    for n, entry in enumerate(report):
        views = entry.layout.views
        with torch.no_grad():
            pixels = inputs["pixel_values"][n][:views]
            features = base.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
            kept, valid = masks(entry)
            image = members.setdefault(id(entry.layout), [])  # weights count images of one layout
            merged = summed(features, kept, len(image), views - 1, valid)
            image.append(n)
            projected = base.multi_modal_projector(merged).flatten(0, 1)
        for place in entry.kept.nonzero().flatten().tolist():
            slot = int(entry.layout.slots[place])
            expected.append(projected[slot] if slot < len(projected) else base.image_newline)
    torch.testing.assert_close(made, torch.stack(expected), atol=1e-4, rtol=1e-4)
    assert sum(entry.tokens_after for entry in report) == len(made)


@pytest.mark.parametrize("name", ["aya_vision", "idefics3", "granite4_vision", "llava_onevision"])
def test_elsewhere_what_the_language_model_would_read_is_merged(monkeypatch, name):
    tiny = built(name)
    merging(monkeypatch)
    images = [picture(224, 224)]
    inputs = dict(tiny.inputs([tiny.tag], images))
    with torch.no_grad(), compress(tiny.model, 0.6, "toy") as compression:
        short = compression.shorten_call(tiny.model, inputs).call["mm_encoder_outputs"]["image"]
        made = levels(short)
        (entry,) = compression.report
    with torch.no_grad():
        arguments = compression.adapter.encode_arguments(tiny.model.model, inputs)
        everything = levels(tiny.model.model.get_image_features(**arguments, return_dict=True))
    layout = entry.layout
    kept, valid = masks(entry)
    crops = layout.views - 1
    # Views with the thumbnail first, from the run of placeholders.
    features = torch.zeros((1 + crops) * layout.tokens, *everything.shape[1:])
    token = (layout.slots >= 0) & (layout.slots < len(features))
    features[layout.slots[token]] = everything[token]
    merged = summed(features.unflatten(0, (1 + crops, layout.tokens)), kept, 0, crops, valid).flatten(0, 1)
    expected = everything.clone()
    expected[token] = merged[layout.slots[token]]
    torch.testing.assert_close(made, expected[entry.kept], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(made, everything[entry.kept], atol=1e-2)


def levels(output):
    """Features (tokens, ...) of an encoder's output, whatever its class."""
    deep = getattr(output, "deepstack_features", None)
    if deep is not None:
        return torch.stack([torch.cat([*tensors]).flatten(0, -2) for _, tensors in deep], 1)
    return torch.cat([item.flatten(0, -2) for item in output.pooler_output])


def test_weight_one_and_nothing_to_add_is_the_plain_result(monkeypatch):
    tiny = built("llava_next")
    answers = []
    for merge in (False, True):

        def toy(views, ratio, merge=merge):
            shape = (len(views.scores), 1 + views.crops, views.tokens)
            nothing = Merge(torch.full(shape, -1), torch.ones(shape)) if merge else None
            return Ranking(views.thumbnail_scores, views.scores, merge=nothing)

        toys.register(monkeypatch, toy, merges=True)
        inputs = tiny.inputs(["<image>"], [picture(168, 168)])
        with torch.no_grad(), compress(tiny.model, 0.3, "toy"):
            answers.append(tiny.model(**inputs).logits)
    assert torch.equal(*answers)


def test_gradients_flow_through_sums(monkeypatch):
    tiny = built("llava_next")
    merging(monkeypatch)
    inputs = dict(tiny.inputs(["<image>"], [picture(168, 168)]))
    inputs["pixel_values"] = inputs["pixel_values"].clone().requires_grad_()
    with compress(tiny.model, 0.3, "toy"):
        tiny.model(**inputs).logits.sum().backward()
    assert inputs["pixel_values"].grad.abs().sum() > 0


def test_what_an_engine_gives_a_method(monkeypatch):
    from types import SimpleNamespace

    from globalcom2.integrations.vllm.options import METHOD, Options

    def served():
        return Options.of(SimpleNamespace(**{METHOD: "toy"}))

    for wants, why in (
        ({"reads": ("cls", "features")}, r"reads the feature of \[CLS\]"),
        ({"reads": ("keys",)}, "reads attention keys"),
        ({"layers": (0,)}, "reads scores of further layers"),
        ({"merges": True}, "merges tokens that it drops"),
    ):
        toys.register(monkeypatch, lambda views, ratio: None, **wants)
        with pytest.raises(InputError, match=f"'toy' cannot be served: .* got 'toy', which {why}"):
            served()
    toys.register(
        monkeypatch, lambda views, ratio, *, counts=None: Ranking(views.thumbnail_scores, views.scores), nested=False
    )
    assert served().method == "toy"
    assert not served().reads
    for name in ("features", "crop_features"):
        toys.register(
            monkeypatch,
            lambda views, ratio, name=name: Ranking(views.thumbnail_scores, views.crop_features.sum(-1)),
            reads=(name,),
        )
        assert served().reads == {name}


def everything_at_once(views, ratio, *, counts=None):
    """Joint, not nested, merging, and reading all there is."""
    scores = views.scores + views.layer_scores.mean((1, 2, 3))[:, None, None]
    scores = scores + views.keys.mean((1, 2, 3))[:, None, None] + views.cls.mean((1, 2))[:, None, None]
    if counts is not None:
        scores = scores + counts.crops[..., None]
    shape = (len(scores), 1 + views.crops, views.tokens)
    into = torch.zeros(shape, dtype=torch.int64)
    return Ranking(views.thumbnail_scores, scores, thumbnail_competes=True, merge=Merge(into, torch.ones(shape)))


def test_the_host_waits_once_whatever_a_method_wants(tiny, monkeypatch):
    wants = {"layers": (0,), "reads": ("features", "keys", "cls"), "nested": False, "merges": True}
    toys.register(monkeypatch, everything_at_once, **wants)
    test_syncs.test_one_wait_between_tower_and_language_model(tiny, monkeypatch, "toy", {})
