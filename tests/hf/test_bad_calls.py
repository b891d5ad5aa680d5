"""Calls, arguments and models that are refused, and the message that each gets."""

import copy

import pytest
import torch

from calls import GREEDY, generate
from globalcom2 import InputError, UnsupportedModelError, compress
from tiny import picture


def test_prompts_and_images_that_do_not_fit(tiny, batch):
    model = tiny.model
    text = tiny.inputs(["no tag"], None)
    image = tiny.inputs(["<image>"], [picture(84, 84)])
    cases = [
        ({**image, "input_ids": text["input_ids"], "attention_mask": text["attention_mask"]}, r"got \[0\] per prompt"),
        (
            {**batch, "pixel_values": batch["pixel_values"][:3], "image_sizes": batch["image_sizes"][:3]},
            "image placeholders",
        ),
        ({**batch, "image_sizes": batch["image_sizes"][:3]}, "must describe the same images, got 4 and 3"),
        ({**batch, "image_sizes": batch["image_sizes"].flip(0)}, "image placeholders"),
        ({k: v for k, v in image.items() if k != "image_sizes"}, "image_sizes must be given"),
        ({**image, "attention_mask": image["attention_mask"][:, 1:]}, "attention_mask must have the shape"),
        ({**image, "image_sizes": (84, 84)}, "image_sizes must be"),
        ({**image, "pixel_values": image["pixel_values"][:, :1]}, r"must hold \[3\] views"),
        ({**image, "vision_feature_select_strategy": "full"}, "in a compressed call, got 'full'"),
    ]
    for inputs, message in cases:
        with compress(model, 0.1) as compression:
            with pytest.raises(InputError, match=message):
                model.generate(**inputs, **GREEDY)
            with pytest.raises(InputError, match=message):
                model(**inputs)
            assert len(compression.report) == 0


def test_max_length_within_the_prompt(tiny):
    inputs = tiny.inputs(["<image>"], [picture(84, 84)])
    with compress(tiny.model, 0.1), pytest.raises(InputError, match=r"more than the prompt's \d+ tokens, got 10"):
        tiny.model.generate(**inputs, max_length=10)


def test_nan_scores_are_reported(tiny):
    model = copy.deepcopy(tiny.model)
    model.model.vision_tower.encoder.layers[-2].self_attn.k_proj.weight.data.fill_(float("nan"))
    with compress(model, 0.1), pytest.raises(InputError, match="must be finite"):
        generate(model, tiny.inputs(["<image>"], [picture(84, 84)]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((25,), r"Did you mean 0.25\?"),
        ((0.1, "globalcomm2"), "Did you mean 'globalcom2'"),
        ((0.1, "globalcom2", {"positions": "closd"}), "Did you mean 'closed'"),
        ((0.1, "globalcom2", {"score": "logit"}), "Did you mean 'logits'"),
        ((0.1, "globalcom2", {"newlines": "some"}), "newlines must be one of"),
        ((0.1, "globalcom2", {"thumbnail_order": "best"}), "thumbnail_order must be one of"),
        ((0.1, "globalcom2", {"tau": 1}), "option of method 'globalcom2'"),
        ((0.1, "uniform", {"temperature": 1}), "option of method 'uniform'"),
        ((0.1, "globalcom2", {"layer": 9}), r"layer must be in \[-4, 3\]"),
    ],
)
def test_bad_arguments_before_anything_is_patched(tiny, arguments, message):
    *positional, options = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    with pytest.raises(InputError, match=message):
        compress(tiny.model, *positional, **options)


def test_unsupported_models(tiny):
    from transformers import LlamaConfig, LlamaForCausalLM

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(UnsupportedModelError, match=r"\(.*llava_next.*\), got model_type 'llama'"):
        compress(LlamaForCausalLM(LlamaConfig(vocab_size=10, **small)), 0.1)
    with pytest.raises(UnsupportedModelError, match="got Linear"):
        compress(torch.nn.Linear(2, 2), 0.1)
    full = copy.deepcopy(tiny.model)
    full.config.vision_feature_select_strategy = "full"
    with pytest.raises(UnsupportedModelError, match="'full' keeps"):
        compress(full, 0.1)
