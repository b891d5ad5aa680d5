"""Small engines on a CPU, and requests to them."""

import contextlib
import gc

import pytest
from PIL import Image

# Raised while a test file is imported, this skips the file.
vllm = pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` makes an environment that has it")

SETTINGS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 2048,
    "max_num_batched_tokens": 2048,
    "max_num_seqs": 8,
    "block_size": 32,  # the default of 128 hides prefix caching from short prompts
    "seed": 0,
    "disable_log_stats": True,
    "limit_mm_per_prompt": {"image": 4},
}


@contextlib.contextmanager
def running(folder, settings=None, **overrides):
    """An engine; `overrides` go into the model's configuration."""
    from vllm.distributed import cleanup_dist_env_and_memory

    engine = vllm.LLM(str(folder), **{**SETTINGS, **(settings or {})}, hf_overrides=overrides)
    try:
        yield engine
    finally:
        del engine
        gc.collect()
        cleanup_dist_env_and_memory()


def request(prompt: str, images: list[Image.Image], ratio: float | None = None, limit: int | None = None) -> dict:
    made = {"prompt": prompt}
    if images:
        made["multi_modal_data"] = {"image": images}
    asked = {"globalcom2_retention": ratio, "globalcom2_max_visual_tokens": limit}
    asked = {name: value for name, value in asked.items() if value is not None}
    if asked:
        made["mm_processor_kwargs"] = asked
    return made


def answers(engine, requests, tokens: int = 8, **sampling):
    """Greedy answers with the five best log-probabilities of every step."""
    parameters = vllm.SamplingParams(temperature=0, max_tokens=tokens, logprobs=5, **sampling)
    return engine.generate(requests, parameters, use_tqdm=False)


def ids(output) -> list[int]:
    return list(output.outputs[0].token_ids)


def best(output) -> list[dict[int, float]]:
    """Per step, log-probabilities by token."""
    return [{token: entry.logprob for token, entry in step.items()} for step in output.outputs[0].logprobs]
