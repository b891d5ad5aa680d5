"""A `CompressionConfig` in an engine, handed over and kept in the model's folder: answers are those of transformers."""

import engines
import pytest
import torch

from globalcom2 import CompressionConfig, compress, load_mini
from globalcom2.lab.dataset import load_examples
from globalcom2.mini import EVALUATION_SET, FOLDER

CONFIG = CompressionConfig(0.15, "globalcom2", options={"alpha": 0.9, "allocation": "softmax"})


@pytest.fixture(scope="module")
def asked():
    pictures = load_examples(EVALUATION_SET, first=8)
    return [(f"<s><user><image>{p.questions[0].text}<assistant>", p.image) for p in pictures]


def probabilities(model, processor, asked, config):
    """Per picture, the five best log-probabilities of the first new token."""
    found = []
    for prompt, image in asked:
        inputs = processor(text=prompt, images=image, return_tensors="pt")
        with torch.no_grad(), compress(model, config=config) as compression:
            logits = model(**inputs).logits[0, -1]
        found.append((compression.report.tokens_after, logits.log_softmax(-1).topk(5)))
    return found


@pytest.mark.parametrize("how", ["handed over", "in the folder"])
def test_an_engine_follows_a_configuration(how, asked, tmp_path):
    model, processor = load_mini()
    folder, overrides = FOLDER, CONFIG.vllm_overrides()
    if how == "in the folder":
        CONFIG.attach(model)
        model.save_pretrained(tmp_path), processor.save_pretrained(tmp_path)
        folder, overrides = tmp_path, {}
    with engines.running(folder, **overrides) as engine:
        served = engines.answers(engine, [engines.request(prompt, [image]) for prompt, image in asked], tokens=1)
    differs = 0
    plain = CompressionConfig(CONFIG.retention_ratio)
    for answer, (count, best), (_, other) in zip(
        served,
        probabilities(model, processor, asked, CONFIG),
        probabilities(model, processor, asked, plain),
        strict=True,
    ):
        assert list(answer.prompt_token_ids).count(model.config.image_token_id) == count
        (step,) = engines.best(answer)
        got = torch.tensor([step[token] for token in best.indices.tolist()])
        torch.testing.assert_close(got, best.values, atol=1e-3, rtol=1e-3)
        differs += not torch.allclose(best.values, other.values, atol=1e-2)
    assert differs > 2  # the options are felt
