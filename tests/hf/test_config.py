"""`CompressionConfig`: what `compress` makes of it, and that files and models give it back."""

import dataclasses
import inspect
import json
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import toys
from calls import generate
from globalcom2 import CompressionConfig, DataError, InputError, Method, Ranking, apply, compress, current, remove
from globalcom2.core.presets import PRESETS
from globalcom2.hf import config_files
from globalcom2.hf.compression import Compression
from globalcom2.hf.config import SETTINGS
from tiny import llava_next, picture


def by_scores(views, ratio):
    return Ranking(views.thumbnail_scores, views.scores)


def kept(model, inputs, *args, **more):
    with torch.no_grad(), compress(model, *args, **more) as compression:
        model(**inputs)
    return compression.report[0].kept


@pytest.fixture
def inputs(llava):
    return llava.inputs(["a <image> b"], [picture(168, 168)])


# What compress makes of it


def test_documented_defaults_are_those_of_the_config():
    documented = dict(re.findall(r"^ {8}(\w+): (.*?)(?=^ {8}\S|^ {4}\S|\Z)", arguments_of(compress), re.M | re.S))
    for field in dataclasses.fields(CompressionConfig):
        default = field.default
        if field.name != "options" and default is not None:
            text = " ".join(documented[field.name].split())
            (found,) = re.findall(r'Default: ("?)(\S+?)\1\.(?: |$)', text)
            assert found[1] == str(default), field.name
    parameters = inspect.signature(compress).parameters
    assert {name for name in parameters if parameters[name].default is None} == {
        *(set(SETTINGS) - {"options"}),
        "preset",
        "config",
    }


def arguments_of(function):
    return function.__doc__.split("    Args:\n")[1].split("    Returns:")[0]


def test_every_preset_is_its_arguments(tiny, inputs):
    paper = {"layer": -1, "allocation": "softmax", "alpha": 0.5}
    published = {**paper, "exact": False, "thumbnail_order": "score"}
    spelled = {"default": {}, "paper": {**paper, "newlines": "counted"}, "published": published}
    assert set(spelled) == set(PRESETS)
    for name, options in spelled.items():
        expected = compress(tiny.model, 0.25, **options).settings
        for made in (
            compress(tiny.model, 0.25, preset=name),
            compress(tiny.model, 0.25, f"globalcom2:preset={name}"),
            compress(tiny.model, config=CompressionConfig.from_preset(name, retention_ratio=0.25)),
        ):
            assert made.settings == expected
        assert expected.preset == name
        assert torch.equal(kept(tiny.model, inputs, 0.25, preset=name), kept(tiny.model, inputs, 0.25, **options))
    assert CompressionConfig(layer=-1).preset is None
    assert CompressionConfig(method="uniform").preset is None


def test_arguments_win(tiny):
    saved = CompressionConfig(0.25, positions="original", layer=-1, options={"alpha": 0.1})

    def made(*args, **more):
        return compress(tiny.model, *args, **more).settings

    assert made(config=saved) == saved
    assert made(0.5, config=saved, alpha=0.2) == saved.replace(retention_ratio=0.5, alpha=0.2)
    assert made(config=saved, method="uniform").options == {}
    assert made(config=saved, method="globalcom2:layer=0,alpha=0.7") == saved.replace(layer=0, alpha=0.7)
    assert made(config=saved, method="globalcom2:layer=0", layer=1).layer == 1
    assert made(preset="paper", layer=0, alpha=0.2, allocation=None).options == {"allocation": None, "alpha": 0.2}
    assert made(preset="published", exact=True, thumbnail_order="raster", newlines="counted").preset == "paper"
    assert made(preset="paper", method="globalcom2:newlines=none,alpha=0.1").options["alpha"] == 0.1


def test_apply_takes_the_same(tiny):
    apply(tiny.model, preset="paper", retention_ratio=0.3)
    assert current(tiny.model).settings == CompressionConfig.from_preset("paper", retention_ratio=0.3)
    apply(tiny.model, config=CompressionConfig(0.4))
    assert current(tiny.model).settings == CompressionConfig(0.4)
    remove(tiny.model)


def test_a_compression_prints_its_settings(tiny):
    assert repr(compress(tiny.model)) == (
        "Compression(LlavaNextForConditionalGeneration, retention_ratio=0.1, method='globalcom2')"
    )
    made = compress(tiny.model, 0.25, preset="paper", positions="original")
    assert (
        "retention_ratio=0.25, method='globalcom2', layer=-1, newlines='counted', positions='original', "
        "allocation='softmax', alpha=0.5)" in repr(made)
    )
    assert repr(CompressionConfig(options={"alpha": 0.2})) == (
        "CompressionConfig(retention_ratio=0.1, method='globalcom2', options={'alpha': 0.2})"
    )
    assert repr(compress(tiny.model, 0.2, by_scores)).endswith("retention_ratio=0.2, method='by_scores')")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"preset": "papr"}, "Did you mean 'paper'"),
        ({"preset": "paper", "method": "uniform"}, "preset must be left out with method 'uniform', got 'paper'"),
        ({"preset": "paper", "method": by_scores}, "preset must be left out with method 'by_scores'"),
        ({"preset": "paper", "method": "globalcom2:preset=paper"}, "preset must be given once"),
        ({"preset": "paper", "config": CompressionConfig()}, "preset and config must not both be given"),
        ({"config": "folder"}, r"config must be a globalcom2.CompressionConfig, got 'folder'. .*from_pretrained"),
        ({"retention": 0.1}, r"got 'retention'. Did you mean 'retention_ratio'\?"),
        ({"ratio": 0.1}, r"got 'ratio'. Did you mean 'retention_ratio'\?"),
        ({"retention_ratio": 10}, "Did you mean 0.1"),
        ({"layer": 1.0}, "layer must be an integer or None, got 1.0"),
        ({"layer": True}, "layer must be an integer or None, got True"),
        ({"exact": 1}, "exact must be True or False, got 1"),
        ({"positions": "open"}, "positions must be one of closed, original"),
        ({"score": "logit"}, "Did you mean 'logits'"),
        ({"logits": 3}, "logits must be one of full, short, got 3"),
        ({"options": [1]}, "options must be a dictionary of names"),
        ({"options": {"layer": -1}}, "option of method 'globalcom2' must not be 'layer'"),
        ({"method": "globalcom2:options=1"}, "must not be 'options', got 'options=1'. Pass it by itself"),
        ({"method": lambda views: None}, r"function of \(views, retention_ratio, \*\*options\), got <lambda>\(views\)"),
        (
            {"method": lambda views, ratio: views.features.sum()},
            r"got '<lambda>'.*'sum'\. .*Method\(name, function, reads=",
        ),
        (
            {"method": lambda views, ratio: Ranking(None, None)},
            "must return a float tensor .* as thumbnail, got NoneType",
        ),
    ],
)
def test_what_cannot_be_asked_for(tiny, wrong, message):
    with pytest.raises(InputError, match=message):
        compress(tiny.model, **wrong)


def test_a_config_says_where_presets_and_texts_go():
    with pytest.raises(InputError, match=r"preset must be given to CompressionConfig\.from_preset"):
        CompressionConfig().replace(preset="paper")
    with pytest.raises(InputError, match="must not be 'options'"):
        CompressionConfig(method="globalcom2:options=1")


def test_a_configs_options_are_its_own():
    options = {"alpha": 0.2}
    config = CompressionConfig(options=options)
    options["alpha"] = 0.9
    assert config.options == {"alpha": 0.2}
    config.to_dict()["options"]["alpha"] = 0.9
    assert config.options == {"alpha": 0.2}


def test_a_texts_options_go_where_they_belong():
    made = CompressionConfig(0.2, "globalcom2:preset=paper,newlines=none", layer=0, options={"alpha": 0.1})
    assert made == CompressionConfig(0.2, layer=0, newlines="none", options={"allocation": "softmax", "alpha": 0.1})
    assert CompressionConfig(0.2, made.method_text) == made


# Functions and Methods


def test_a_function_and_a_method_decide_as_if_they_were_registered(tiny, inputs, monkeypatch):
    toys.register(monkeypatch, by_scores)
    expected = kept(tiny.model, inputs, 0.3, "toy")
    assert torch.equal(kept(tiny.model, inputs, 0.3, by_scores), expected)
    assert torch.equal(kept(tiny.model, inputs, 0.3, lambda views, ratio: by_scores(views, ratio)), expected)
    assert torch.equal(kept(tiny.model, inputs, 0.3, Method("own", by_scores)), expected)
    with compress(tiny.model, 0.3, by_scores) as compression:
        generate(tiny.model, inputs)
    assert compression.report.method == "by_scores"


def test_a_method_with_a_function_says_what_it_reads(tiny, inputs):
    def by_norm(views, ratio):
        norms = views.features.norm(dim=-1)
        return Ranking(norms[:, 0], norms[:, 1:])

    with pytest.raises(InputError, match="reads="):
        compress(tiny.model, 0.3, by_norm)
    found = kept(tiny.model, inputs, 0.3, Method("by_norm", by_norm, reads=("features",)))
    assert not torch.equal(found, kept(tiny.model, inputs, 0.3, by_scores))


def test_copies_and_pickles_of_a_model_keep_a_named_function():
    import copy
    import pickle

    model = apply(llava_next().model, 0.2, by_scores)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert current(clone).settings == CompressionConfig(0.2, by_scores)


def test_an_image_of_unknown_grid_is_not_given_to_a_function(tiny):
    from globalcom2.hf.unknown_grid import choose_tokens

    compression = compress(tiny.model, 0.5, lambda views, ratio: by_scores(views, ratio))
    example = compression.saliency.example()
    with pytest.warns(UserWarning, match="equal budgets"):
        keep = choose_tokens(compression.settings, example, False)
    assert keep.crops.sum(1).tolist() == [2, 2, 2, 2]


# Saved


words = {
    "exact": st.booleans(),
    "score": st.sampled_from([None, "logits", "attention", "similarity"]),
    "layer": st.none() | st.integers(-30, 30),
    "newlines": st.sampled_from([None, "counted", "all", "none"]),
    "positions": st.sampled_from(["closed", "original"]),
    "thumbnail_order": st.sampled_from(["raster", "score"]),
    "logits": st.sampled_from(["short", "full"]),
}
of_methods = st.one_of(
    st.fixed_dictionaries({"method": st.just("uniform")}),
    st.fixed_dictionaries({"method": st.just("random"), "options": st.fixed_dictionaries({"seed": st.integers()})}),
    st.fixed_dictionaries(
        {
            "method": st.just("globalcom2"),
            "options": st.dictionaries(
                st.sampled_from(["alpha", "temperature", "allocation"]), st.floats(0, 1) | st.sampled_from(["a", "1"])
            ),
        }
    ),
)
quickly = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@quickly
@given(st.floats(0.001, 1), st.fixed_dictionaries({}, optional=words), of_methods)
def test_dictionaries_files_and_texts_give_a_config_back(tmp_path_factory, ratio, fields, of_method):
    config = CompressionConfig(ratio, **fields, **of_method)
    assert CompressionConfig.from_dict(config.to_dict()) == config
    assert CompressionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert CompressionConfig(ratio, config.method_text) == config
    path = config.save_pretrained(tmp_path_factory.getbasetemp() / "config")
    assert CompressionConfig.from_pretrained(path) == CompressionConfig.from_pretrained(path.parent) == config


def test_the_file(tmp_path):
    path = CompressionConfig.from_preset("paper", retention_ratio=0.25).save_pretrained(tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b" / "compression_config.json"
    found = json.loads(path.read_text())
    assert list(found) == sorted(found)
    assert found["format_version"] == 2
    assert found["globalcom2_version"]
    assert (found["retention_ratio"], found["layer"]) == (0.25, -1)
    path.write_text('{"retention_ratio": 0.5}')  # written by hand
    assert CompressionConfig.from_pretrained(str(path)) == CompressionConfig(0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be a file of JSON"),
        ("[1]", "must hold a JSON object, got list"),
        ('{"format_version": 3, "globalcom2_version": "9.1"}', r"1 to 2, got 3, written by globalcom2 9\.1\. Update"),
        ('{"format_version": "x"}', "format_version"),
        ('{"retention": 0.1}', "a key of the settings must be one of .*Did you mean 'retention_ratio'"),
        ('{"retention_ratio": "0.1"}', "retention_ratio must be a number"),
        ('{"retention_ratio": 10}', "Did you mean 0.1"),
        ('{"method": "globalcom"}', "Did you mean 'globalcom2'"),
        ('{"method": null}', "method must be a method's name, got None"),
        ('{"options": {"alfa": 1}}', "Did you mean 'alpha'"),
        ('{"options": 3}', "options must be a dictionary of names and values, got 3"),
        ('{"exact": "yes"}', "exact must be True or False"),
        ('{"thumbnail_weight": null}', "thumbnail_weight must be a positive number"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, text, message):
    path = tmp_path / "compression_config.json"
    path.write_text(text)
    for name in (path, tmp_path):
        with pytest.raises(DataError, match=message) as caught:
            CompressionConfig.from_pretrained(name)
        assert str(path) in str(caught.value)


def test_names_without_a_configuration(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"has neither. .*save_pretrained"):
        CompressionConfig.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="must be an existing file or folder, or a name on the hub"):
        CompressionConfig.from_pretrained(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"a repository on the hub with compression_config\.json, got 'owner/name': "):
        CompressionConfig.from_pretrained("owner/name")  # tests are offline
    with pytest.raises(InputError, match="name must be a path, got None"):
        CompressionConfig.from_pretrained(None)
    (tmp_path / "config.json").write_text('{"model_type": "llava_next"}')
    for name in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(InputError, match=r"config\.json that has globalcom2_retention"):
            CompressionConfig.from_pretrained(name)
    CompressionConfig(0.3).save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr("transformers.utils.cached_file", lambda *names: asked.append(names) or tmp_path / names[1])
    assert CompressionConfig.from_pretrained("owner/name") == CompressionConfig(0.3)
    assert asked == [("owner/name", "compression_config.json")]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            CompressionConfig(method=by_scores),
            "method must be a registered one to be saved, got 'by_scores'.*entry point",
        ),
        (CompressionConfig(method=Method("own", by_scores)), "got 'own'"),
        (CompressionConfig(options={"alpha": torch.ones(2)}), "options must be .* to be saved, got alpha=tensor"),
        (CompressionConfig(options={"temperature": 1.0, "alpha": (1, 2)}), r"got alpha=\(1, 2\)"),
    ],
)
def test_what_cannot_be_saved(tmp_path, config, message):
    with pytest.raises(InputError, match=message):
        config.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="folder must be a folder, got the file"):
        CompressionConfig().save_pretrained(tmp_path / "file")
    (tmp_path / "there" / "compression_config.json").mkdir(parents=True)
    for folder in (tmp_path / "file" / "folder", tmp_path / "there"):
        with pytest.raises(InputError, match=r"folder must be one that can be written to, got .* directory\. Choose"):
            CompressionConfig().save_pretrained(folder)
    with pytest.raises(InputError, match="folder must be a path, got None"):
        CompressionConfig().save_pretrained(None)


def test_a_registered_method_is_saved_by_its_name(monkeypatch):
    method = toys.register(monkeypatch, by_scores)
    assert CompressionConfig(method=method).to_dict()["method"] == "toy"
    assert CompressionConfig.from_dict(CompressionConfig(method=method).to_dict()).selector == method
    assert CompressionConfig(method=method) == CompressionConfig(method="toy")


def test_a_function_with_a_registered_name_is_no_preset_and_shares_no_options():
    def globalcom2(views, ratio, alpha=0.0):
        return by_scores(views, ratio)

    config = CompressionConfig(method=globalcom2, options={"alpha": 0.2})
    assert (config.preset, config.method_name) == (None, "globalcom2 (function)")
    assert config.replace(method="globalcom2").options == {}
    with pytest.raises(InputError, match="preset must be left out"):
        CompressionConfig.from_preset("paper", method=globalcom2)


# In a model's config, and for vLLM


def test_a_model_keeps_what_was_attached(tmp_path):
    from transformers import AutoModelForImageTextToText

    from globalcom2.integrations.vllm.options import Options

    model = llava_next().model
    with pytest.raises(InputError, match=r"got none. .*attach"):
        CompressionConfig.of(model)
    config = CompressionConfig(0.25, options={"alpha": 0.1})
    config.attach(model)
    model.save_pretrained(tmp_path)
    assert CompressionConfig.from_pretrained(tmp_path) == config  # from the model's config.json
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert CompressionConfig.of(again) == config
    assert compress(again).settings == CompressionConfig()  # nothing follows by itself
    assert compress(again, config=CompressionConfig.of(again)).settings == config
    assert Options.of(again.config) == Options(0.25, 0.25, "globalcom2:alpha=0.1")  # an engine does
    other = CompressionConfig.from_preset("paper")
    other.save_pretrained(tmp_path)
    assert CompressionConfig.from_pretrained(tmp_path) == other  # a file of its own comes first
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llava_next"


def test_everything_can_be_attached(tiny):
    before = dict(vars(tiny.model.config))
    config = CompressionConfig.from_preset("published", retention_ratio=0.5, score="attention", newlines="none")
    config.attach(tiny.model)
    assert CompressionConfig.of(tiny.model) == config
    vars(tiny.model.config).clear(), vars(tiny.model.config).update(before)
    with pytest.raises(InputError, match="registered"):
        CompressionConfig(method=by_scores).attach(tiny.model)
    assert config_files.RETENTION not in vars(tiny.model.config)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CompressionConfig(), {"globalcom2_retention": 0.1, "globalcom2_method": "globalcom2"}),
        (CompressionConfig(0.2, "uniform"), {"globalcom2_retention": 0.2, "globalcom2_method": "uniform"}),
        (CompressionConfig(options={"alpha": 0.5}), {"globalcom2_method": "globalcom2:alpha=0.5"}),
        (
            CompressionConfig(newlines="from_3", thumbnail_weight=2.0, score="similarity"),
            {"globalcom2_method": "globalcom2:score=similarity,newlines=from_3,thumbnail_weight=2.0"},
        ),
    ],
)
def test_overrides_for_vllm(config, expected):
    assert config.vllm_overrides().items() >= expected.items()


@pytest.mark.parametrize(
    "unusual",
    [
        {"exact": False}, {"layer": -1}, {"positions": "original"}, {"thumbnail_order": "score"}, {"logits": "full"},
    ],
)  # fmt: skip
def test_what_an_engine_cannot_follow(unusual):
    ((name, value),) = unusual.items()
    with pytest.raises(InputError, match=f"{name} must be left out for a vLLM engine, got {name}={value!r}"):
        CompressionConfig(**unusual).vllm_overrides()


def test_an_engine_is_told_of_an_option_out_of_range_before_it_starts():
    for config in (CompressionConfig(options={"alpha": "x"}), CompressionConfig(1.0, options={"allocation": "softmx"})):
        with pytest.raises(InputError, match=r"alpha must be|allocation must be"):
            config.vllm_overrides()


def test_methods_that_an_engine_cannot_follow():
    with pytest.raises(InputError, match=r"an engine can follow, got 'own', which reads the feature of \[CLS\]"):
        CompressionConfig(method=Method("own", by_scores, reads=("cls",))).vllm_overrides()
    with pytest.raises(InputError, match="must be a registered one"):
        CompressionConfig(method=by_scores).vllm_overrides()
    with pytest.raises(InputError, match=r"layer and .* must be left out"):
        CompressionConfig.from_preset("published").vllm_overrides()


def test_compressions_can_be_made_of_configs_for_studies(tiny):
    assert Compression(tiny.model, CompressionConfig(0.2)).settings.retention_ratio == 0.2
