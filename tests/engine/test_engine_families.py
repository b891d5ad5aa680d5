"""Every family: the engine answers as transformers does with the same compression."""

import checkpoints
import engines
import pytest
import torch

from globalcom2 import compress
from tiny import picture

NAMES = ("llava_next", "llava_next_two_layers", "llava_onevision", "internvl", "idefics3", "smolvlm")
SIZES = ((168, 168), (60, 200), (400, 100), (84, 84), (30, 30), (250, 200))


@pytest.fixture(scope="module", params=NAMES)
def served(request, folder):
    """(tiny model in transformers, engine), with one and the same processor."""
    from transformers import AutoProcessor

    saved = folder(request.param)
    made = checkpoints.tiny(request.param)._replace(processor=AutoProcessor.from_pretrained(saved))
    video = {"video": 0} if request.param in ("llava_onevision", "internvl") else {}
    settings = {"limit_mm_per_prompt": {"image": 4, **video}}
    with engines.running(saved, settings, globalcom2_retention=0.4, globalcom2_floor=0.05) as engine:
        yield made, engine


def expected(made, prompt, images, ratio, limit=None, steps=6):
    """Tokens and log-probabilities of transformers, and the length of the prompt that it read."""
    with torch.no_grad(), compress(made.model, ratio, max_visual_tokens=limit) as compression:
        inputs = made.inputs([prompt], images)
        out = made.model.generate(
            **inputs, max_new_tokens=steps, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    start = inputs["input_ids"].shape[1]
    placeholders = int((inputs["input_ids"] == made.model.config.image_token_id).sum())
    kept = placeholders if ratio == 1 and limit is None else compression.report.tokens_after
    return out.sequences[0, start:].tolist(), torch.cat(out.logits).log_softmax(-1), start - placeholders + kept


@pytest.mark.parametrize("ratio", [None, 1.0, 0.4, 0.1, "20 tokens"])
def test_answers_and_probabilities_are_those_of_transformers(served, ratio):
    """Some of the images have fewer than 20 tokens."""
    made, engine = served
    ratio, limit = (1.0, 20) if ratio == "20 tokens" else (ratio, None)
    prompts = [f"a {made.tag} b", f"{made.tag}?"]
    image_id = made.model.config.image_token_id
    for number, size in enumerate(SIZES):
        prompt, images = prompts[number % 2], [picture(*size, seed=number)]
        tokens, logprobs, length = expected(made, prompt, images, ratio or 0.4, limit)
        got = engines.answers(
            engine,
            [engines.request(prompt, images, None if limit else ratio, limit)],
            6,
            ignore_eos=True,
            logit_bias={image_id: -100},
        )[0]
        assert len(got.prompt_token_ids) == length, size
        assert engines.ids(got) == tokens, size
        for step, found in zip(logprobs, engines.best(got), strict=True):
            for token, value in found.items():
                if token != image_id:
                    assert value == pytest.approx(float(step[token]), abs=2e-3), size
