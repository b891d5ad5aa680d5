"""InternVL's original checkpoint format: the engine answers as transformers does with the same weights and compression."""

import chat
import engines
import pytest
from test_engine_families import expected

from families.internvl import VIEW
from tiny import picture

# (cols, rows) of crops: nothing is resized but for the thumbnail.
NATIVE = ((2, 1), (1, 3), (2, 2), (1, 1), (3, 2), (6, 1))
OTHERS = ((60, 200), (250, 200), (30, 30))
SETTINGS = {"trust_remote_code": True}


@pytest.fixture(scope="module", params=[False, True], ids=["biases", "qk-norm"])
def served(request, tmp_path_factory):
    """(tiny model in transformers, engine)."""
    made = chat.tiny_chat(request.param)
    saved = chat.save_chat(made, tmp_path_factory.mktemp(f"chat{int(request.param)}"))
    with engines.running(saved, SETTINGS, globalcom2_retention=0.4, globalcom2_floor=0.05) as engine:
        yield made, engine


@pytest.mark.parametrize("ratio", [1.0, 0.4, 0.1])
def test_answers_and_probabilities_are_those_of_transformers(served, ratio):
    made, engine = served
    image_id = made.model.config.image_token_id
    for number, size in enumerate([(cols * VIEW, rows * VIEW) for cols, rows in NATIVE] + list(OTHERS)):
        images = [picture(*size, seed=number)]
        tokens, logprobs, length = expected(made, f"a {made.tag} b?", images, ratio)
        request = engines.request("a <image> b?", images, ratio)
        got = engines.answers(engine, [request], 6, ignore_eos=True, logit_bias={image_id: -100})[0]
        assert len(got.prompt_token_ids) == length, size
        assert engines.ids(got) == tokens, size
        for step, found in zip(logprobs, engines.best(got), strict=True):
            for token, value in found.items():
                if token != image_id:
                    assert value == pytest.approx(float(step[token]), abs=2e-3), size
