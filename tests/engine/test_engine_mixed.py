"""Compressed images beside what is not compressed: videos, and adapters (LoRA) of the language model."""

import json

import checkpoints
import engines
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_engine_families import expected

from globalcom2 import compress
from native_oracles import cut_logits
from tiny import picture

VIDEOS = ("llava_onevision", "internvl")
RANK, ALPHA = 4, 8


def close(output, logprobs, tokens=None):
    """An engine's answer against log-probabilities (steps, vocabulary), and against tokens."""
    assert tokens is None or engines.ids(output) == tokens
    for step, found in zip(logprobs, engines.best(output), strict=True):
        for token, value in found.items():
            if value > -50:  # what the bias forbids
                assert value == pytest.approx(float(step[token]), abs=2e-3)


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_beside_pictures_keep_all_their_tokens(name, folder):
    from transformers import AutoProcessor

    saved = folder(name)
    made = checkpoints.tiny(name)._replace(processor=AutoProcessor.from_pretrained(saved))
    image, frames = picture(168, 168, seed=60), np.stack([np.asarray(picture(84, 84, seed=i)) for i in range(4)])
    prompts = [f"{made.tag} and <video> so", f"<video> and {made.tag} so"]
    asked = {"multi_modal_data": {"image": [image], "video": [frames]}}
    image_id, more = made.model.config.image_token_id, vars(made.model.config).get("video_token_id")
    bias = {image_id: -100} | ({} if more is None else {more: -100})
    settings = {"limit_mm_per_prompt": {"image": 4, "video": 1}}
    with engines.running(saved, settings, globalcom2_retention=0.2) as engine:
        outputs = engines.answers(
            engine, [{"prompt": prompt, **asked} for prompt in prompts], 5, ignore_eos=True, logit_bias=bias
        )
    with torch.no_grad(), compress(made.model, 0.2) as compression:
        made.model(**made.inputs([made.tag], [image]))
    for prompt, output in zip(prompts, outputs, strict=True):
        whole = made.processor(
            text=[prompt], images=[image], videos=[frames], do_sample_frames=False, return_tensors="pt"
        )
        keep = torch.ones_like(whole["input_ids"][0], dtype=torch.bool)
        (own,), places = (
            [image.kept for image in compression.report],
            (whole["input_ids"][0] == image_id).nonzero()[:, 0],
        )
        # InternVL's frames have the same placeholders as pictures.
        keep[places[: len(own)] if prompt.startswith(made.tag) else places[-len(own) :]] = own
        assert len(output.prompt_token_ids) == int(keep.sum()) < len(keep)
        with torch.no_grad():
            logits = cut_logits(made.model, whole, keep, torch.tensor(engines.ids(output)), closed=True)
        close(output, logits.log_softmax(-1))


def save_adapter(model, folder):
    """An adapter of the language model's attention with weights that are not zero, which also go into `model`."""
    generator, weights = torch.Generator().manual_seed(5), {}
    for name, module in model.named_modules():
        if "language_model" not in name or not name.endswith(("q_proj", "v_proj", "o_proj")):
            continue
        down = torch.randn(RANK, module.in_features, generator=generator) * 0.2
        up = torch.randn(module.out_features, RANK, generator=generator) * 0.2
        weights |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
        module.weight.data += ALPHA / RANK * up @ down
    told = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": ["q_proj", "v_proj", "o_proj"],
        "bias": "none",
    }
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(told))
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_adapters_of_the_language_model(name, folder, tmp_path):
    """One after another: on a CPU, vLLM 0.32 gives all requests of a batch the adapter, text alone, too."""
    from transformers import AutoProcessor
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    saved = folder(name)
    made = checkpoints.tiny(name)._replace(processor=AutoProcessor.from_pretrained(saved))
    prompt, images = f"a {made.tag} b", [picture(60, 200, seed=1)]
    plain = expected(made, prompt, images, 0.2)
    adapter = LoRARequest("adapter", 1, str(save_adapter(made.model, tmp_path / "adapter")))
    tuned = expected(made, prompt, images, 0.2)
    assert not torch.allclose(plain[1][0], tuned[1][0], atol=0.1)
    settings = {"enable_lora": True, "max_lora_rank": 8, "limit_mm_per_prompt": {"image": 4}}
    parameters = SamplingParams(
        temperature=0, max_tokens=6, logprobs=5, ignore_eos=True, logit_bias={made.model.config.image_token_id: -100}
    )
    with engines.running(saved, settings, globalcom2_retention=0.2) as engine:
        asked = [engines.request(prompt, images)]
        outputs = [
            engine.generate(asked, parameters, use_tqdm=False, lora_request=own)[0] for own in (adapter, None, adapter)
        ]
    for output, (tokens, logprobs, length) in zip(outputs, (tuned, plain, tuned), strict=True):
        assert len(output.prompt_token_ids) == length
        close(output, logprobs, tokens)
