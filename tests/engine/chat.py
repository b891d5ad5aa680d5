"""InternVL checkpoints of the original format, `internvl_chat`, which transformers has no code for.

The weights are those of a tiny InternVL of transformers under the names of the original code, so that the same model answers
in both.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import InternVLProcessor

from families.internvl import INTERNVIT, PATCH, TOKENS, VIEW, images, internvl, without_videos
from tiny import Tiny

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # fixed in vLLM's code

CONFIGURATION = '''
"""Configuration classes as a checkpoint of this format brings them."""

from transformers import Qwen2Config
from transformers.configuration_utils import PretrainedConfig


class InternVisionConfig(PretrainedConfig):
    model_type = "intern_vit_6b"


class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"

    def __init__(self, vision_config=None, llm_config=None, **kwargs):
        super().__init__(**kwargs)
        self.vision_config = InternVisionConfig(**(vision_config or {}))
        self.llm_config = Qwen2Config(**(llm_config or {}))
'''

VISION = "model.vision_tower."
RENAMED = {
    r"^lm_head\.": "language_model.lm_head.",
    r"^model\.language_model\.": "language_model.model.",
    r"^model\.multi_modal_projector\.layer_norm\.": "mlp1.0.",
    r"^model\.multi_modal_projector\.linear_1\.": "mlp1.1.",
    r"^model\.multi_modal_projector\.linear_2\.": "mlp1.3.",
    r"^model\.vision_tower\.": "vision_model.",
    r"embeddings\.cls_token": "embeddings.class_embedding",
    r"embeddings\.patch_embeddings\.projection": "embeddings.patch_embedding",
    r"embeddings\.position_embeddings": "embeddings.position_embedding",
    r"encoder\.layer\.": "encoder.layers.",
    r"\.attention\.projection_layer\.": ".attn.proj.",
    r"\.attention\.": ".attn.",
    r"\.layernorm_before\.": ".norm1.",
    r"\.layernorm_after\.": ".norm2.",
    r"\.lambda_": ".ls",
}


def tiny_chat(qk_norm: bool, heads: int = 4) -> Tiny:
    """The model in transformers. Published towers have either biases (300M) or norms of queries and keys (6B)."""
    made = internvl(use_qk_norm=qk_norm, attention_bias=not qk_norm, num_attention_heads=heads)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.model.model.vision_tower.parameters():
            if parameter.ndim == 1:  # norms that are all ones and biases that are all zeros would show no mistake
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    processor = without_videos(
        InternVLProcessor, images(image_mean=MEAN, image_std=STD), made.processor.tokenizer, image_seq_length=TOKENS
    )
    return made._replace(processor=processor)


def save_chat(made: Tiny, folder: Path) -> Path:
    """A checkpoint folder; load it with trust_remote_code."""
    config = made.model.config
    vision = config.vision_config
    (folder / "configuration_internvl_chat.py").write_text(CONFIGURATION)
    written = {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": VIEW,
        "llm_config": config.text_config.to_dict(),
        "max_dynamic_patch": 6,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "torch_dtype": "float32",
        "use_thumbnail": True,
        "tie_word_embeddings": False,
        "vision_config": {
            **{name: INTERNVIT[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")},
            "num_attention_heads": vision.num_attention_heads,
            "hidden_act": vision.hidden_act,
            "image_size": VIEW,
            "initializer_factor": 1.0,
            "layer_norm_eps": vision.layer_norm_eps,
            "norm_type": vision.norm_type,
            "patch_size": PATCH,
            "qk_normalization": vision.use_qk_norm,
            "qkv_bias": vision.attention_bias,
        },
    }
    (folder / "config.json").write_text(json.dumps(written, indent=1))
    made.processor.tokenizer.save_pretrained(folder)
    save_file(renamed(made.model.state_dict()), folder / "model.safetensors", {"format": "pt"})
    return folder


def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of the original code; queries, keys and values are one matrix there."""
    found: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if match := re.search(r"attention\.([qkv])_proj\.", name):
            if not name.startswith(VISION) or match[1] != "q":
                if not name.startswith(VISION):
                    raise KeyError(name)
                continue
            weight = torch.cat([weights[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
            name = name.replace(".q_proj.", ".qkv.")
        for old, new in RENAMED.items():
            name = re.sub(old, new, name)
        found[name] = weight.contiguous().clone()
    return found
