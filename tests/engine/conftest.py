"""Tests against the real vLLM, on a CPU: `make test-vllm`. Skipped where vLLM is not installed."""

import os

import pytest

# An engine in this process: it starts fast, and tests can look inside.
for name, value in {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(name, value)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Checkpoint folder of a family's tiny model, saved once."""
    import checkpoints

    made = {}

    def of(name: str):
        if name not in made:
            made[name] = checkpoints.save(name, tmp_path_factory.mktemp(name))
        return made[name]

    return of


@pytest.fixture(scope="module")
def mini():
    """The mini model, at a tenth of its tokens unless a request says otherwise."""
    import engines

    from globalcom2.mini import FOLDER

    with engines.running(FOLDER, globalcom2_retention=0.1, globalcom2_floor=0.01) as engine:
        yield engine
