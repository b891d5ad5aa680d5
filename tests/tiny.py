"""Random-weight models with real processors, built offline in a moment. One function per family."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

VIEW, PATCH = 84, 14
PINPOINTS = [[84, 168], [168, 84], [168, 168], [84, 252], [252, 84], [252, 252]]


class Tiny(NamedTuple):
    """A model, its processor and the tag that stands for an image in a prompt."""

    model: Any
    processor: Any
    tag: str
    nested: bool = False
    """Whether the processor wants a list of images per prompt."""

    def inputs(self, texts: list[str], images: list[Image.Image] | None) -> Any:
        images = images or None
        if self.nested and images is not None:
            left = iter(images)
            images = [[next(left) for _ in range(text.count(self.tag))] for text in texts]
        return self.processor(text=texts, images=images, return_tensors="pt", padding=True)


def tokenizer(*extra: str, named: dict[str, str] | None = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges; `extra` and `named` tokens are special ones."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<pad>", "<s>", "</s>", *extra)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        **({"extra_special_tokens": named} if named else {}),
    )


def llava_next(**vision: Any) -> Tiny:
    """36 tokens per view, up to 3 x 3 crops."""
    torch.manual_seed(0)
    tok = tokenizer("<image>")
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": VIEW},
            crop_size={"height": VIEW, "width": VIEW},
            image_grid_pinpoints=PINPOINTS,
        ),
        tok,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            **{
                "hidden_size": 48,
                "intermediate_size": 64,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "image_size": VIEW,
                "patch_size": PATCH,
                "projection_dim": 32,
                **vision,
            }
        ),
        text_config=LlamaConfig(
            vocab_size=len(tok),
            pad_token_id=tok.pad_token_id,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=4096,
        ),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(VIEW // PATCH) ** 2,
    )
    return Tiny(finished(LlavaNextForConditionalGeneration(config), tok), processor, "<image>")


def finished(model: Any, tok: Any) -> Any:
    """Spread the weights, and answers of full length without image tags."""
    model = model.eval()
    spread(model)
    model.generation_config.pad_token_id = tok.pad_token_id
    model.generation_config.eos_token_id = None
    # A generated image tag would count as a placeholder in the unpatched model too.
    model.generation_config.suppress_tokens = [model.config.image_token_id]
    return model


def spread(model: torch.nn.Module) -> None:
    """Weights large enough that every token matters to the answer."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.5 if "embed" in name or "newline" in name or "class" in name else 0.15
            if parameter.ndim > 1 or scale == 0.5:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth random picture with noise, so that crops differ."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(2, height // 40), max(2, width // 40), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray((smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8))


def footprint(model) -> list:
    """Everything that patching could leave behind: attributes, hooks, configurations of every module."""
    stock = (
        "_compiled_call",
        "_last_compile_config",
        "_previous_max_cache_length",
    )  # left by transformers' static cache
    return [
        (name, sorted(set(module.__dict__).difference(stock)), len(module._forward_pre_hooks), len(module._forward_hooks),
         id(getattr(module, "config", None)), getattr(getattr(module, "config", None), "_attn_implementation", None))
        for name, module in model.named_modules()
    ]  # fmt: skip
