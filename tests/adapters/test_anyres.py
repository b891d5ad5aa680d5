"""What the LLaVA line has beyond the matrix: shrunk crops, images without crops, features for several layers."""

import functools
from types import SimpleNamespace

import pytest
import torch
from transformers import LlavaOnevisionConfig
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from families import llava
from globalcom2 import InputError, UnsupportedModelError, compress
from globalcom2.adapters.anyres import layout_of, packing_of
from globalcom2.adapters.llava_onevision import LlavaOnevisionAdapter
from globalcom2.core.layout import kept_places
from independent import cut_call, reports_keep
from tiny import llava_next, picture

BUILDERS = [llava.llava_onevision, llava.llava_next_video, llava.granite4_vision]
SIZES = [(336, 336), (700, 1300), (2304, 2304), (1500, 400), (30, 3000), (1, 5000), (5000, 3), (1999, 1001)]


built = functools.cache(lambda builder: builder())


@pytest.fixture(params=BUILDERS, ids=lambda builder: builder.__name__)
def tiny(request):
    return built(request.param)


@pytest.fixture
def onevision():
    return built(llava.llava_onevision)


def published(aspect="anyres_max_9"):
    return packing_of(LlavaOnevisionModel, LlavaOnevisionConfig(), vision_aspect_ratio=aspect)


def pack(model, base, views, size, **arguments):
    """The model's own packing of one image's features, without newlines: (places, dim)."""
    base = base if isinstance(base, model) else SimpleNamespace(config=base)
    packed = model.pack_image_features(base, [views.view(*views.shape[:2], -1)], [list(size)], **arguments)
    return (packed[0] if isinstance(packed, tuple) else packed)[0]


def is_token(layout):
    return (layout.slots >= 0) & (layout.slots < layout.views * layout.tokens)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_layout_has_the_length_that_the_processor_says(onevision, height, width):
    processor = llava.without_videos(
        type(onevision.processor),
        onevision.processor.image_processor.__class__(),  # the published views of 384 px
        onevision.processor.tokenizer,
        num_image_tokens=27**2,
        vision_feature_select_strategy="full",
    )
    layout = layout_of(published(), height, width)
    (wanted,) = processor._get_num_multimodal_tokens(image_sizes=[(height, width)]).num_image_tokens
    assert len(layout.slots) == wanted
    used = layout.slots[layout.slots >= 0]
    assert len(used.unique()) == len(used) == 27**2 + int(layout.valid.sum()) + layout.line_count
    assert kept_places(layout, 1.0) == wanted


@pytest.mark.parametrize("aspect", ["anyres_max_9", "anyres_max_36"])
@pytest.mark.parametrize("shape", [(5,), ()], ids=["features", "scores"])
def test_places_of_onevision_have_what_the_packing_puts_there(aspect, shape):
    height, width = 2304, 1500
    layout = layout_of(published(aspect), height, width)
    assert (layout.mixture is None) == (aspect == "anyres_max_36")
    views = torch.rand(layout.views, layout.tokens, *shape, generator=torch.Generator().manual_seed(0))
    packed = pack(LlavaOnevisionModel, LlavaOnevisionConfig(), views, (height, width), vision_aspect_ratio=aspect)
    arranged = LlavaOnevisionAdapter().arrange(views, layout)
    assert torch.equal(arranged[0], views[0])
    torch.testing.assert_close(arranged.reshape(-1, packed.shape[-1])[layout.slots[is_token(layout)]], packed)


@pytest.mark.parametrize("builder", [llava_next, llava.llava_next_video, llava.granite4_vision])
def test_places_of_the_others_have_what_the_packing_puts_there(builder):
    tiny = built(builder)
    base, size = tiny.model.base_model, (300, 400)
    with compress(tiny.model, 0.2) as compression:
        tiny.model.generate(**tiny.inputs(["<image>"], [picture(*size[::-1])]), max_new_tokens=1)
    layout = compression.report[0].layout
    views = torch.rand(layout.views, layout.tokens, 5)
    strategy = base.config.vision_feature_select_strategy
    packed = pack(type(base), base, views, size, vision_feature_select_strategy=strategy)
    torch.testing.assert_close(views.flatten(0, 1)[layout.slots[is_token(layout)]], packed)


def test_without_shrinking_every_token_is_its_own():
    layout = layout_of(published("anyres_max_36"), 768, 768)
    assert layout.mixture is None
    assert bool(layout.valid.all())


def test_images_that_share_a_prompt_have_no_crops(onevision):
    pictures = [picture(168, 168), picture(60, 200), picture(168, 168)]
    inputs = onevision.inputs(["<image> and <image>?", "<image>?"], pictures)
    with compress(onevision.model, 0.25) as compression:
        onevision.model.generate(**inputs, max_new_tokens=1)
    grids = [image.grid for image in compression.report]
    assert grids[:2] == [(0, 0), (0, 0)]
    assert grids[2] == (2, 2)
    assert [image.tokens_after for image in compression.report][:2] == [9, 9]


def test_a_flat_list_of_images_has_crops(onevision):
    """The processor says so: one image per prompt, whatever the prompts hold."""
    inputs = onevision._replace(nested=False).inputs(["<image> and <image>?"], [picture(168, 168), picture(60, 200)])
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with compress(onevision.model, 0.25) as compression:
        short = onevision.model.generate(**inputs, **options)
    assert all(image.grid[0] for image in compression.report)
    by_hand = onevision.model.generate(**cut_call(onevision.model, inputs, reports_keep(compression)), **options)
    torch.testing.assert_close(torch.stack(short.logits), torch.stack(by_hand.logits), atol=2e-5, rtol=1e-5)


def test_a_direct_call_equals_generate(tiny):
    inputs = tiny.inputs(["a <image> b", "<image>"], [picture(300, 200, 1), picture(90, 200, 2)])
    with compress(tiny.model, 0.2), torch.no_grad():
        generated = tiny.model.generate(
            **inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        direct = tiny.model(**inputs)
    torch.testing.assert_close(direct.logits[:, -1], generated.logits[0], atol=2e-5, rtol=1e-5)


def test_the_tower_runs_once(tiny):
    calls = []
    hook = tiny.model.base_model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    try:
        with compress(tiny.model, 0.2):
            tiny.model.generate(**tiny.inputs(["<image>"], [picture(300, 200)]), max_new_tokens=2)
    finally:
        hook.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("method", ["globalcom2", "uniform", "random"])
def test_every_method_runs(tiny, method):
    inputs = tiny.inputs(["<image>"], [picture(300, 200)])
    with compress(tiny.model, 0.2, method) as compression:
        tiny.model.generate(**inputs, max_new_tokens=1)
    assert compression.report[0].tokens_after == kept_places(compression.report[0].layout, 0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_sizes": None}, "image_sizes must be given"),
        ({"vision_feature_select_strategy": "wrong"}, "vision_feature_select_strategy must be"),
        ({"pixel_values": torch.zeros(1, 1, 3, 84, 84)}, "pixel_values must hold"),
    ],
)
def test_a_call_that_does_not_fit_says_so(tiny, change, message):
    inputs = tiny.inputs(["<image>"], [picture(300, 200)])
    with compress(tiny.model, 0.2), pytest.raises(InputError, match=message):
        tiny.model.generate(**{**inputs, **change}, max_new_tokens=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_num_images": [2]}, "batch_num_images must count the 1 images"),
        ({"vision_aspect_ratio": "anyres"}, "vision_aspect_ratio must be 'anyres_max_N'"),
    ],
)
def test_a_onevision_call_that_does_not_fit_says_so(onevision, change, message):
    inputs = onevision.inputs(["<image>"], [picture(300, 200)])
    with compress(onevision.model, 0.2), pytest.raises(InputError, match=message):
        onevision.model.generate(**{**inputs, **change}, max_new_tokens=1)


def test_the_other_strategy_is_refused(tiny):
    config = tiny.model.config
    right = config.vision_feature_select_strategy
    config.vision_feature_select_strategy = "full" if right == "default" else "default"
    try:
        with pytest.raises(UnsupportedModelError, match=f"must be '{right}' for {config.model_type}"):
            compress(tiny.model, 0.2)
    finally:
        config.vision_feature_select_strategy = right


@pytest.mark.parametrize(("builder", "layer"), [(llava.granite4_vision, -1), (llava.llava_next_video, -2)])
def test_scores_are_read_in_the_deepest_layer_of_the_features(builder, layer):
    """Granite 4 Vision names its layers otherwise, and has a `vision_feature_layer` that it does not use."""
    tiny = built(builder)

    def kept(**options):
        with torch.no_grad(), compress(tiny.model, 0.3, score="logits", **options) as compression:
            tiny.model(**tiny.inputs(["<image>"], [picture(200, 150)]))
        return compression.report[0].kept

    assert torch.equal(kept(), kept(layer=layer))
    assert not torch.equal(kept(), kept(layer=-3 - layer))
