"""A `CompressionConfig` in an engine, handed over and kept in the model's folder: answers are those of transformers.

And engines that do not start, because they would not compress what they were asked to.
"""

import engines
import pytest
import torch
import vllm
from transformers import LlamaConfig, LlavaConfig
from vllm.engine.arg_utils import EngineArgs

from globalcom2 import CompressionConfig, compress, load_mini
from globalcom2.integrations import vllm as plugin
from globalcom2.integrations.vllm.options import logger
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
def test_an_engine_follows_a_configuration(how, asked, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(logger, "info", lines.append)
    model, processor = load_mini()
    folder, overrides = FOLDER, CONFIG.vllm_overrides()
    if how == "in the folder":
        CONFIG.attach(model)
        model.save_pretrained(tmp_path), processor.save_pretrained(tmp_path)
        folder, overrides = tmp_path, {}
    with engines.running(folder, **overrides) as engine:
        served = engines.answers(engine, [engines.request(prompt, [image]) for prompt, image in asked], tokens=1)
    (line,) = lines  # one for an engine
    assert f"ratio 0.15, floor 0.15, method {CONFIG.method_text}, " in line
    assert line.endswith("model class globalcom2.integrations.vllm.anyres.LlavaNext.")
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


@pytest.fixture(scope="module")
def unknown(tmp_path_factory):
    """The configuration of a model that the plugin does not replace."""
    small = LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    made = tmp_path_factory.mktemp("llava")
    LlavaConfig(text_config=small, architectures=["LlavaForConditionalGeneration"]).save_pretrained(made)
    return made


def started(folder, **settings):
    """As far as an engine gets before it reads any weights."""
    return EngineArgs(str(folder), **settings).create_model_config()


def test_an_engine_that_would_compress_nothing_does_not_start(unknown, monkeypatch):
    tenth = {"globalcom2_retention": 0.1}
    why = "got LlavaForConditionalGeneration: vLLM would serve it with all of its tokens"
    for overrides in (tenth, {"globalcom2_max_visual_tokens": 64}):
        with pytest.raises(TypeError, match=why):
            started(unknown, hf_overrides=overrides)
    with pytest.raises(
        TypeError, match="got TransformersMultiModal"
    ):  # the plugin's class is not the one that would run
        started(FOLDER, hf_overrides=tenth, model_impl="transformers")
    monkeypatch.setenv("GLOBALCOM2_RETENTION", "0.1")
    with pytest.raises(TypeError, match=why):
        started(unknown)
    started(FOLDER)
    monkeypatch.delenv("GLOBALCOM2_RETENTION")
    started(unknown, hf_overrides={"globalcom2_retention": 1})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"globalcom2_retenton": 0.1}, "got 'globalcom2_retenton'.* Did you mean 'globalcom2_retention'"),
        ({"retention_ratio": 0.1}, "got 'retention_ratio'.* Did you mean 'globalcom2_retention'"),
        ({"text_config": {"globalcom2_retention": 0.1}}, "globalcom2_retention belongs into hf_overrides itself"),
        ({"globalcom2_retention": 10**400}, "globalcom2_retention must be in"),
        ({"globalcom2_retention": "0.2_5"}, "globalcom2_retention must be a number"),
    ],
)
def test_settings_that_would_be_lost(overrides, message):
    with pytest.raises(ValueError, match=message):
        started(FOLDER, hf_overrides=overrides)


def test_an_untested_version_compresses_or_does_not_start(monkeypatch):
    monkeypatch.delenv("GLOBALCOM2_ANY_VLLM", raising=False)
    monkeypatch.setattr(vllm, "__version__", "0.99.0")
    try:
        with pytest.warns(UserWarning, match=r"globalcom2 compresses nothing: .* got 0\.99\.0"):
            plugin.register()
        started(FOLDER)
        with pytest.raises(TypeError, match=r"globalcom2 would compress nothing here: vllm must be .* got 0\.99\.0"):
            started(FOLDER, hf_overrides={"globalcom2_retention": 0.1})
        monkeypatch.setenv("GLOBALCOM2_ANY_VLLM", "1")
        plugin.register()
        started(FOLDER, hf_overrides={"globalcom2_retention": 0.1})
    finally:
        monkeypatch.undo()
        plugin.register()
