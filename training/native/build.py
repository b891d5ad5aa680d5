"""The native mini's parts around the weights: tokenizer, processor, chat template and configuration."""

from __future__ import annotations

from functools import cache

from transformers import (
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from build import CHAT_TEMPLATE, WORDS
from build import tokenizer as word_tokenizer
from tower import MEAN, STD

PATCH, MERGE = 8, 2
TOKEN = PATCH * MERGE  # side of a token, px
WINDOW = 7  # tokens on the side of a window of the tower: 112 px, a crop of the first mini
WIDTH = 256  # of the decoder and of what the tower hands over
MOST = 28  # tokens on a side of the largest pictures
IMAGE, VIDEO, START, END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", IMAGE, VIDEO, START, END, "<user>", "<assistant>")
TEMPLATE = CHAT_TEMPLATE.replace("'<image>'", f"'{START}{IMAGE}{END}'")


class PictureProcessor(Qwen2_5_VLProcessor):
    """Qwen's processor for pictures alone. Without torchvision the stock class cannot be made: it wants one for videos."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **_):
        self.image_token, self.video_token = IMAGE, VIDEO
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([IMAGE, VIDEO])
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """The first mini's, with Qwen's special tokens and the word `where`. "03 07" becomes four tokens."""
    return word_tokenizer(SPECIAL, (*WORDS, "where"))


def image_processor() -> Qwen2VLImageProcessorPil:
    """Sides become multiples of 16 px. `size` bounds areas: 64 x 64 to 448 x 448 px."""
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": 64**2, "longest_edge": (MOST * TOKEN) ** 2},
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        image_mean=list(MEAN),
        image_std=list(STD),
    )


def processor() -> PictureProcessor:
    return PictureProcessor(image_processor(), tokenizer(), chat_template=TEMPLATE)


def model_config() -> Qwen2_5_VLConfig:
    words = tokenizer()
    special = dict(zip(SPECIAL, words.convert_tokens_to_ids(list(SPECIAL)), strict=True))
    ends = {"bos_token_id": special["<s>"], "eos_token_id": special["</s>"], "pad_token_id": special["<pad>"]}
    return Qwen2_5_VLConfig(
        vision_config=vision_config(),
        text_config=text_config(-(-len(words) // 8) * 8) | ends,
        image_token_id=special[IMAGE],
        video_token_id=special[VIDEO],
        vision_start_token_id=special[START],
        vision_end_token_id=special[END],
        tie_word_embeddings=False,
    )


def vision_config() -> dict:
    return {
        "depth": 6,
        "hidden_size": 160,
        "intermediate_size": 432,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "window_size": WINDOW * TOKEN,
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [2, 5],
        "tokens_per_second": 2,
    }


def text_config(vocabulary: int) -> dict:
    """Theta is small because sections are cut from fast frequencies to slow ones: with 10,000 widths are never learnt."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 640,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 30.0, "mrope_section": [2, 7, 7]},
        "tie_word_embeddings": False,
    }


def model() -> Qwen2_5_VLForConditionalGeneration:
    """The model with random weights."""
    made = Qwen2_5_VLForConditionalGeneration(model_config())
    words, settings = tokenizer(), made.generation_config
    settings.bos_token_id, settings.eos_token_id = words.bos_token_id, words.eos_token_id
    settings.pad_token_id = words.pad_token_id
    return made
