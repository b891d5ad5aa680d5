"""How many placeholders an image gets, for thousands of sizes at the resolutions of published models. No engine runs."""

import random
from types import SimpleNamespace

import chat
import engines
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from vllm.config.multimodal import MultiModalConfig
from vllm.multimodal.processing import InputProcessingContext, PromptReplacement, PromptUpdateDetails

from families.internvl import internvl
from families.tagged import idefics3, smolvlm
from globalcom2.core.layout import kept_places
from globalcom2.errors import UnsupportedModelError
from globalcom2.integrations.vllm import anyres, tagged
from globalcom2.integrations.vllm import internvl as plugin
from globalcom2.integrations.vllm.options import PARTS, Options, in_parts
from globalcom2.integrations.vllm.processing import FIELD
from tiny import picture

assert engines  # skips the file where vLLM is not installed
SIZES = 20_000


def context(config, tokenizer=None) -> InputProcessingContext:
    multimodal = MultiModalConfig(mm_device_do_normalize=False)  # as for models that cannot do it
    model = SimpleNamespace(
        hf_config=config, multimodal_config=multimodal, get_multimodal_config=lambda: multimodal, model="tiny"
    )
    return InputProcessingContext(model, tokenizer)


def with_processor(kind, config, processor):
    info = kind(context(config))
    info.get_hf_processor = lambda **arguments: processor
    return info


def sizes(number: int):
    """Widths and heights: even, long strips, tiny ones, and round numbers, where divisions come out even."""
    rng = random.Random(0)
    for _ in range(number):
        kind = rng.randrange(4)
        if kind == 0:
            yield rng.randint(1, 3000), rng.randint(1, 3000)
        elif kind == 1:
            yield rng.choice([(rng.randint(1, 60), rng.randint(1, 8000)), (rng.randint(1, 8000), rng.randint(1, 60))])
        elif kind == 2:
            yield rng.randint(1, 500), rng.randint(1, 500)
        else:
            step = rng.choice((14, 48, 100, 112, 336, 384, 448))
            yield step * rng.randint(1, 2000 // step), step * rng.randint(1, 2000 // step)


def info_of(model):
    """The `ProcessingInfo` that is registered for a model class."""
    return model._processor_factory.info


def check(info, number: int, count) -> None:
    family, config, seen = info.family, info.get_hf_config(), set()
    for width, height in sizes(number):
        layout = family.layout(config, *family.describe(info, width, height, {}))
        assert len(layout.slots) == count(width, height), (width, height)
        seen.add(layout.grid)
    assert len(seen) > 4


def llava_next() -> LlavaNextConfig:
    return LlavaNextConfig(
        vision_config=CLIPVisionConfig(image_size=336, patch_size=14),
        text_config=LlamaConfig(),
        image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        vision_feature_select_strategy="default",
    )


def test_llava_next():
    info = info_of(anyres.LlavaNext)(context(llava_next()))
    check(info, SIZES, lambda width, height: info.get_num_image_tokens(image_width=width, image_height=height))


def test_llava_onevision():
    """Its 36 grids make layouts of up to 9000 places, of which a test cannot afford twenty thousand."""
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(image_size=384, patch_size=14),
        text_config=Qwen2Config(),
        image_grid_pinpoints=[[384 * rows, 384 * cols] for rows in range(1, 7) for cols in range(1, 7)],
        vision_aspect_ratio="anyres_max_9",
    )
    info = info_of(anyres.LlavaOnevision)(context(config))
    check(info, 1000, lambda width, height: info.get_num_image_tokens(image_width=width, image_height=height))


def internvl_info(**images):
    made = internvl()
    made.processor.image_processor = GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, **images)
    made.processor.image_seq_length = 256
    config = InternVLConfig(image_seq_length=256)
    return with_processor(info_of(plugin.InternVL), config, made.processor), made.processor


def test_internvl():
    info, processor = internvl_info(crop_to_patches=True, min_patches=1, max_patches=12)
    check(
        info,
        SIZES,
        lambda width, height: info.get_num_image_tokens(
            image_width=width, image_height=height, processor=processor, mm_kwargs={}
        ),
    )


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("asked", [{}, {"crop_to_patches": False}, {"max_patches": 3}])
def test_internvl_cuts_as_its_processor_does(saved, asked):
    """Image processors are saved without cropping, too, and transformers' processor crops all the same."""
    info, processor = internvl_info(crop_to_patches=saved, min_patches=1, max_patches=6)
    for size in ((900, 300), (500, 900), (100, 90)):
        inputs = processor(text=[processor.image_token], images=[picture(*size)], return_tensors="pt", **asked)
        layout = info.family.layout(info.get_hf_config(), *info.family.describe(info, *size, asked))
        assert layout.views == len(inputs["pixel_values"])
        assert len(layout.slots) == int((inputs["input_ids"] == processor.image_token_id).sum())


def test_internvl_chat():
    made = chat.tiny_chat(False)
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=448, patch_size=14),
        downsample_ratio=0.5,
        min_dynamic_patch=1,
        max_dynamic_patch=12,
        dynamic_image_size=True,
        use_thumbnail=True,
    )
    info = info_of(plugin.InternVLChat)(context(config, made.processor.tokenizer))
    info.get_hf_config = lambda: config
    info.ctx_video_token = None
    processor = info.get_hf_processor()
    info.get_hf_processor = lambda **arguments: processor
    check(
        info,
        SIZES,
        lambda width, height: info.get_num_image_tokens(image_width=width, image_height=height, processor=processor),
    )


@pytest.mark.parametrize(("name", "value"), [("use_thumbnail", False), ("ps_version", "v1")])
def test_internvl_chat_without_a_thumbnail_or_with_turned_views_is_refused(name, value):
    published = {"use_thumbnail": True, "ps_version": "v2"}
    plugin.CHAT.check(SimpleNamespace(**published))
    with pytest.raises(UnsupportedModelError, match=name):
        plugin.CHAT.check(SimpleNamespace(**{**published, name: value}))


@pytest.mark.parametrize(("kind", "make", "view"), [("Idefics3", idefics3, 364), ("SmolVLM", smolvlm, 512)])
def test_tagged(kind, make, view):
    made = make()
    made.model.config.vision_config.image_size = view
    images = made.processor.image_processor
    images.size, images.max_image_size = {"longest_edge": 4 * view}, {"longest_edge": view}
    made.processor.image_seq_len = (view // 14 // 2) ** 2
    info = with_processor(info_of(getattr(tagged, kind)), made.model.config, made.processor)

    def count(width, height):
        return info.get_num_image_tokens(image_width=width, image_height=height, processor=made.processor, mm_kwargs={})

    check(info, SIZES, count)


@pytest.mark.parametrize("ratio", [0.73, 0.25, 0.1, 0.001])
def test_a_prompt_gets_the_kept_places(ratio):
    """And tokens around the run stay."""
    info = info_of(anyres.LlavaNext)(context(llava_next()))
    processor = object.__new__(anyres.LlavaNext._processor_factory.processor)
    processor.info = info
    for width, height in sizes(40):
        two = info.family.describe(info, width, height, {})
        layout = info.family.layout(info.get_hf_config(), *two)
        whole = [8, *[7] * info.get_num_image_tokens(image_width=width, image_height=height), 9]
        update = PromptReplacement("image", [7], PromptUpdateDetails.select_token_id(whole, 7))
        image = {FIELD: SimpleNamespace(data=torch.tensor([in_parts(ratio), *two]))}
        short = processor._shortened(update, [image]).replacement(0)
        assert short.full == [8, *[7] * kept_places(layout, ratio), 9]
        assert (short.before, short.after) == (len(layout.slots), kept_places(layout, ratio))
        assert short.is_embed(short.full).tolist() == [token == 7 for token in short.full]


def test_limits_are_exact_at_the_resolutions_of_published_models():
    info = info_of(anyres.LlavaNext)(context(llava_next()))
    engine = Options(1.0, 0.0001, "globalcom2", limit=2000)
    for number, (width, height) in enumerate(sizes(200)):
        layout = info.family.layout(info.get_hf_config(), *info.family.describe(info, width, height, {}))
        limit = 1 + 13 * number
        ratio = engine.ratio_of(layout, engine.asked({"globalcom2_max_visual_tokens": limit}))
        kept = engine.kept(layout, in_parts(ratio) / PARTS)
        whole = len(layout.slots)
        # Newlines that end no token are there only where all stays.
        assert kept == min(limit, 2000, whole) or min(limit, 2000) >= kept == engine.kept(layout, 1 - 1e-9)
