"""Families whose images keep their resolution: the engine answers as transformers does with the same compression."""

import random
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import checkpoints
import engines
import numpy as np
import pytest
import torch

from globalcom2 import compress
from globalcom2.errors import GlobalCom2Error, InputError
from native_oracles import cut_logits, keep_of
from tiny import picture

NAMES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
CASES = (  # sizes of the pictures of a prompt: portrait, landscape, one window and several
    ((168, 168),),
    ((60, 200),),
    ((240, 80),),
    ((100, 60), (64, 160)),
    ((200, 48), (48, 48), (120, 200)),
)
RATIOS = ((None, None), (1.0, None), (0.1, None), (None, 30))
"""And limits in tokens, of a request."""
STEPS = 6


@pytest.fixture(scope="module", params=NAMES)
def served(request, folder):
    """(tiny model in transformers, engine), with one and the same processor."""
    from transformers import AutoProcessor

    saved = folder(request.param)
    made = checkpoints.tiny(request.param)._replace(processor=AutoProcessor.from_pretrained(saved))
    settings = {"limit_mm_per_prompt": {"image": 4, "video": 1}, "max_num_seqs": 16}
    with engines.running(saved, settings, globalcom2_retention=0.4, globalcom2_floor=0.05) as engine:
        yield made, engine


@pytest.fixture
def asked(served):
    """(prompt, pictures, ratio, limit) of requests, and what transformers answers: tokens, log-probabilities, tokens read."""
    made, _ = served
    found = []
    for number, sizes in enumerate(CASES):
        images = [picture(*size, seed=3 * number + i) for i, size in enumerate(sizes)]
        prompt = "a".join([f"{made.tag} well"] * len(sizes))
        found += [_asked(made, prompt, images, *wish) for wish in RATIOS]
    return [*found, _asked(made, "no picture here", [])]


def _asked(made, prompt, images, ratio=None, limit=None):
    return (prompt, images, ratio, limit), _expected(made, prompt, images, ratio or (1.0 if limit else 0.4), limit)


def _expected(made, prompt, images, ratio, limit=None, **options):
    inputs = made.inputs([prompt], images)
    with torch.no_grad(), compress(made.model, ratio, max_visual_tokens=limit, **options) as compression:
        out = made.model.generate(
            **inputs, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    read = inputs["input_ids"].shape[1]
    dropped = sum(image.tokens_before - image.tokens_after for image in compression.report)
    return out.sequences[0, read:].tolist(), torch.cat(out.logits).log_softmax(-1), read - dropped


def _forbidden(made) -> list[int]:
    return [made.model.config.image_token_id, made.model.config.video_token_id]


def _answers(made, engine, requests):
    bias = dict.fromkeys(_forbidden(made), -100)
    return engines.answers(engine, requests, STEPS, ignore_eos=True, logit_bias=bias)


def _compare(made, outputs, asked) -> None:
    for output, ((prompt, images, *wish), (tokens, logprobs, length)) in zip(outputs, asked, strict=True):
        about = (prompt, [image.size for image in images], wish)
        assert len(output.prompt_token_ids) == length, about
        assert engines.ids(output) == tokens, about
        _close(made, output, logprobs, about)


def _close(made, output, logprobs, about=None) -> None:
    for step, found in zip(logprobs, engines.best(output), strict=True):
        for token, value in found.items():
            if token not in _forbidden(made):
                assert value == pytest.approx(float(step[token]), abs=1e-3), about


def _scheduler(engine):
    return engine.llm_engine.engine_core.engine_core.scheduler


def test_answers_and_probabilities_are_those_of_transformers(served, asked, monkeypatch):
    """All requests in one batch; again, with their beginnings in the cache; then in chunks of five tokens."""
    made, engine = served
    requests = [engines.request(*request) for request, _ in asked]
    outputs = _answers(made, engine, requests)
    assert {output.num_cached_tokens for output in outputs} == {0}
    _compare(made, outputs, asked)
    again = _answers(made, engine, requests)
    assert sum(output.num_cached_tokens >= 32 for output in again) > 10
    _compare(made, again, asked)
    monkeypatch.setattr(_scheduler(engine).scheduler_config, "long_prefill_token_threshold", 5)
    engine.reset_prefix_cache()
    _compare(made, _answers(made, engine, requests), asked)


def test_a_picture_is_found_after_another_beginning(served):
    """Its embeddings come from the cache; where they stand in the prompt is not theirs to know."""
    made, engine = served
    image = picture(120, 200, seed=50)
    for prompt in (f"{made.tag}?", f"{made.tag} {made.tag}?", f"a long beginning, and then {made.tag}?"):
        one = _asked(made, prompt, [image] * prompt.count(made.tag), 0.1)
        _compare(made, _answers(made, engine, [engines.request(*one[0])]), [one])


def test_methods_are_given_the_features_of_transformers(served):
    made, engine = served
    prompt, images = f"{made.tag}?", [picture(160, 120, seed=70)]

    def follow(model, method):
        model.options, before = replace(model.options, method=method), model.options.method
        return before

    (before,) = engine.apply_model(partial(follow, method="divprune"))
    output = _answers(made, engine, [engines.request(prompt, images, 0.1)])
    engine.apply_model(partial(follow, method=before))
    expected = _expected(made, prompt, images, 0.1, method="divprune")
    _compare(made, output, [((prompt, images, "divprune"), expected)])
    assert expected[0] != _expected(made, prompt, images, 0.1)[0]


def test_videos_beside_pictures_keep_all_their_tokens(served):
    made, engine = served
    image, frames = picture(96, 64, seed=60), np.stack([np.asarray(picture(64, 48, seed=i)) for i in range(4)])
    about = {"fps": 2.0, "duration": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}
    video = "<|vision_start|><|video_pad|><|vision_end|>"
    for prompt in (f"{made.tag} and {video} so", f"{video} and {made.tag} so"):
        whole = made.processor(
            text=[prompt],
            images=[image],
            videos=[frames],
            video_metadata=[about],
            do_sample_frames=False,
            return_tensors="pt",
        )
        with torch.no_grad(), compress(made.model, 0.1) as compression:
            made.model.generate(**made.inputs([made.tag], [image]), max_new_tokens=1)
        keep = keep_of(made.model, whole, compression.report)[0]
        clip = frames if made.model.config.model_type == "qwen2_vl" else (frames, {**about, "do_sample_frames": False})
        request = {
            "prompt": prompt,
            "multi_modal_data": {"image": [image], "video": [clip]},
            "mm_processor_kwargs": {"globalcom2_retention": 0.1},
        }
        output = _answers(made, engine, [request])[0]
        assert len(output.prompt_token_ids) == int(keep.sum())
        with torch.no_grad():
            logits = cut_logits(made.model, whole, keep, torch.tensor(engines.ids(output)))
        _close(made, output, logits.log_softmax(-1), prompt)


def test_sizes_are_those_of_the_processor(served):
    made, engine = served
    info, images = engine.llm_engine.renderer.mm_processor.info, made.processor.image_processor
    random.seed(0)
    for _ in range(2000):
        width, height = (round(2 ** random.uniform(0, 11)) for _ in range(2))
        if max(width, height) > 190 * min(width, height):
            continue  # Qwen's processors refuse these
        layout = info.family.layout(info.get_hf_config(), *info.family.describe(info, width, height, {}))
        assert 4 * len(layout.slots) == images.get_number_of_image_patches(height, width, {}), (width, height)


def test_prompts_beyond_the_models_positions_are_refused(served, monkeypatch):
    made, engine = served
    monkeypatch.setattr(engine.llm_engine.model_config.hf_text_config, "max_position_embeddings", 100)
    monkeypatch.setattr(engine.llm_engine.model_config, "max_model_len", 100)
    strip = picture(8, 800)
    assert _answers(made, engine, [engines.request(f"{made.tag}?", [picture(64, 64)], 0.05)])
    with pytest.raises(ValueError, match="must end within the model's 100 positions"):
        _answers(made, engine, [engines.request(f"{made.tag}?", [strip], 0.05)])


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size"),
        ({"prefill_context_parallel_size": 2}, "prefill_context_parallel_size"),
        ({"use_ubatching": True}, "enable_dbo"),
        ({"speculative_config": object()}, "speculative_config"),
        ({"rate": ("evs", 0.5)}, "video_pruning_rate"),
    ],
)
def test_engines_in_which_others_number_tokens_are_refused(setting, name):
    from globalcom2.integrations.vllm.native import check_engine

    def engine(**own):
        plain = {"pipeline_parallel_size": 1, "prefill_context_parallel_size": 1, "use_ubatching": False}
        multimodal = SimpleNamespace(get_video_pruning_spec=lambda: own.get("rate"))
        return SimpleNamespace(
            parallel_config=SimpleNamespace(**{n: own.get(n, value) for n, value in plain.items()}),
            speculative_config=own.get("speculative_config"),
            model_config=SimpleNamespace(multimodal_config=multimodal),
        )

    check_engine(engine())
    with pytest.raises(InputError, match=f"{name}.* must be left out"):
        check_engine(engine(**setting))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("globalcom2:thumbnail_weight=0.5", "thumbnail_weight must be left out for qwen3_vl"),
        ("globalcom2:positions=closed", "positions must be 'original' for qwen3_vl"),
        ("thumbnail_only", "thumbnail"),
    ],
)
def test_settings_that_native_images_cannot_follow_are_refused_at_the_start(method, message):
    from globalcom2.integrations.vllm.native import NativeModel
    from globalcom2.integrations.vllm.options import Options

    class Alone(NativeModel):
        def __init__(self, method):
            self.options, self.saliency = Options(0.4, 0.1, method), "similarity"
            self.config = SimpleNamespace(model_type="qwen3_vl")

    Alone("globalcom2")._check_method()
    Alone("divprune")._check_method()
    with pytest.raises(GlobalCom2Error, match=message):
        Alone(method)._check_method()


def test_an_engine_that_compresses_nothing_is_vllms_own(folder):
    """The last test: an engine that ends takes the others of its process with it."""
    from transformers import AutoProcessor

    saved = folder("qwen3_vl")
    made = checkpoints.tiny("qwen3_vl")._replace(processor=AutoProcessor.from_pretrained(saved))
    prompt, images = f"{made.tag}?", [picture(100, 60)]
    with engines.running(saved) as engine:
        output = _answers(made, engine, [engines.request(prompt, images)])
    _compare(made, output, [_asked(made, prompt, images, 1.0)])
