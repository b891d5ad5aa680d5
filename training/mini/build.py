"""The mini model's parts around the weights: tokenizer, processor, chat template and configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from scenes import COLORS, SHAPES, VIEW
from scenes import WORDS as DOCUMENT_WORDS
from tower import MEAN, PATCH, STD, tower_config

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<user>", "<assistant>")
WORDS = [
    "what",
    "number",
    "is",
    "on",
    "the",
    "there",
    "a",
    "how",
    "many",
    "tags",
    "are",
    "color",
    "which",
    "left",
    "of",
    "right",
    "above",
    "below",
    "largest",
    "smallest",
    "or",
    "tag",
    "much",
    "document",
    "line",
    "yes",
    "no",
    "and",
    "in",
    "read",
    "name",
    "shape",
    "picture",
    "it",
    "this",
]
# (height, width), as LlavaNextConfig wants them
PINPOINTS = [[VIEW * rows, VIEW * cols] for rows, cols in ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (3, 3))]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<user>' if message['role'] == 'user' else '<assistant>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(special: Sequence[str] = SPECIAL, known: Sequence[str] = tuple(WORDS)) -> PreTrainedTokenizerFast:
    """Word-level, lower case. A digit at the start of a number and one inside it are different tokens: tens and units."""
    words = [f"▁{w}" for w in (*known, *COLORS, *SHAPES, *DOCUMENT_WORDS)]
    digits = [f"▁{d}" for d in range(10)] + [str(d) for d in range(10)]
    vocabulary = {token: i for i, token in enumerate((*special, *words, *digits, "?", ".", ","))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\bcolour\b"), "color"),
            normalizers.Replace(Regex(r"\s+(?=[?.,])"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False),
            pre_tokenizers.Split(Regex(r"▁?[a-z]+|▁?[0-9]|▁?[^a-z0-9▁]"), behavior="isolated"),
        ]
    )
    core.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    core.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def processor() -> LlavaNextProcessor:
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": VIEW},
        crop_size={"height": VIEW, "width": VIEW},
        image_grid_pinpoints=PINPOINTS,
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    return LlavaNextProcessor(
        images,
        tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def model_config(tokens: PreTrainedTokenizerFast) -> LlavaNextConfig:
    size = -(-len(tokens) // 8) * 8
    return LlavaNextConfig(
        vision_config=tower_config(),
        text_config=LlamaConfig(
            vocab_size=size,
            hidden_size=256,
            intermediate_size=640,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        ),
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(VIEW // PATCH) ** 2,
        tie_word_embeddings=False,
    )


def model(tokens: PreTrainedTokenizerFast) -> LlavaNextForConditionalGeneration:
    return LlavaNextForConditionalGeneration(model_config(tokens))


def averaged(checkpoints: Sequence[Path], device: str = "cpu") -> dict[str, dict[str, torch.Tensor]]:
    """Weights of every part that all of the checkpoints hold, averaged: of runs that went on from each other, that evens out
    the noise of small steps."""
    saved = [torch.load(checkpoint, map_location=device) for checkpoint in checkpoints]
    parts = [part for part in ("tower", "model", "heads", "reader") if all(part in run for run in saved)]
    return {
        part: {name: torch.stack([run[part][name] for run in saved]).mean(0) for name in saved[0][part]}
        for part in parts
    }
