"""Families of other packages: how they are found, checked and shown."""

import json
import sys
from importlib import import_module

import pytest

import globalcom2
from command import call
from globalcom2 import Family, InputError, UnsupportedModelError, list_models, register_family
from globalcom2.adapters import families
from globalcom2.core import methods, plugins

PACKAGE = """
from globalcom2 import Family
from globalcom2.adapters.llava_next import LlavaNextAdapter

FAMILY = Family("lanterna", "{name}:Adapter", "its own", "first", "nothing", checkpoints=("owner/lanterna-7b",))
TAKEN = Family("llava_next", "{name}:Adapter", "its own", "first", "nothing")
NONE = "no family"


class Adapter(LlavaNextAdapter):
    pass


class Stranger:
    pass


class Failing(Adapter):
    def __init__(self):
        raise ValueError("no luck")
"""
FIELDS = {"model_type": "lanterna", "target": "a.b:C", "scores": "s", "thumbnail": "first", "tested": "nothing"}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package whose entry points are given as {name: object}, as pip would; gives its module's name."""
    name = f"package_of_{tmp_path.name.replace('-', '_')}"

    def install(**points):
        (tmp_path / f"{name}.py").write_text(PACKAGE.format(name=name))
        metadata = tmp_path / f"{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{point} = {name}:{target}" for point, target in points.items()]
        (metadata / "entry_points.txt").write_text("[globalcom2.families]\n" + "\n".join(lines) + "\n")
        return name

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    families._load_entry_points.cache_clear()
    yield install
    families._load_entry_points.cache_clear()
    sys.modules.pop(name, None)


def test_a_family_of_another_package_is_a_family_like_any_other(installed, capsys):
    name = installed(lanterna="FAMILY")
    assert "lanterna" in list_models()
    assert type(families.load_adapter("lanterna")) is import_module(name).Adapter
    code, out, _ = call(capsys, "models", "--json")
    row = next(row for row in json.loads(out)["families"] if row["model_type"] == "lanterna")
    assert code == 0
    assert row["checkpoints"] == ["owner/lanterna-7b"]
    assert row["vllm"] is False
    assert "lanterna" in call(capsys, "models")[1]
    assert "owner/lanterna-7b" in call(capsys, "models", "--markdown")[1]


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("NONE", "InputError: it must be a globalcom2.Family, got str"),
        ("MISSING", "has no attribute 'MISSING'. Update or remove that distribution."),
        ("TAKEN", "InputError: model type 'llava_next' is already registered by globalcom2.adapters.llava_next"),
    ],
)
def test_what_cannot_be_used_is_left_out_with_a_warning_that_names_it(installed, target, why):
    ours = set(families._FAMILIES)
    name = installed(broken=target, lanterna="FAMILY")
    with pytest.warns(UserWarning, match=f"'broken' \\({name}:{target}\\) of distribution '{name}'") as caught:
        found = list_models()
    assert why in str(caught[0].message)
    assert set(found) == ours | {"lanterna"}
    assert families.get_family("llava_next").target.startswith("globalcom2.")


def test_an_adapter_that_cannot_be_imported_is_named(installed):
    installed(lanterna="FAMILY")
    list_models()
    families._FAMILIES["lanterna"] = Family(**{**FIELDS, "target": "no_such_package:Adapter"})
    with pytest.raises(UnsupportedModelError, match=r"'lanterna' must be a class .*no_such_package:Adapter"):
        families.load_adapter("lanterna")


@pytest.mark.parametrize(
    ("adapter", "got"),
    [
        ("Stranger", r"a subclass of .*Adapter, got {}:Stranger, which makes <.*Stranger"),
        ("Failing", "got {}:Failing: ValueError: no luck. Update the package"),
    ],
)
def test_an_adapter_that_is_none_is_named(installed, adapter, got):
    name = installed(lanterna="FAMILY")
    list_models()
    families._FAMILIES["lanterna"] = Family(**{**FIELDS, "target": f"{name}:{adapter}"})
    with pytest.raises(UnsupportedModelError, match=got.format(name)):
        families.load_adapter("lanterna")


def test_a_model_type_is_registered_once(monkeypatch):
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    register_family(Family(**FIELDS))
    assert "lanterna" in list_models()
    with pytest.raises(InputError, match=r"'lanterna' is already registered by a\.b:C"):
        register_family(Family(**{**FIELDS, "target": "d:E"}))
    assert families.get_family("lanterna").target == "a.b:C"
    with pytest.raises(InputError, match=r"must be a globalcom2\.Family, got dict"):
        register_family(FIELDS)


def test_a_package_may_add_a_family_that_we_do_not_support(monkeypatch):
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    register_family(Family(**{**FIELDS, "model_type": "gemma3"}))
    assert families.get_family("gemma3").target == "a.b:C"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_type", "", "model_type of a Family must be a text that is not empty, got ''"),
        ("scores", None, "scores of a Family must be a text"),
        ("target", "a.b.C", "must be 'module:Class', got 'a.b.C'"),
        ("target", "a b:C", "must be 'module:Class'"),
        ("checkpoints", ["a/b"], "must be a tuple of names as OWNER/NAME"),
        ("checkpoints", ("a",), "must be a tuple of names as OWNER/NAME"),
        ("vllm", "yes", "vllm of family 'lanterna' must be True or False, got 'yes'"),
    ],
)
def test_fields_are_checked(field, value, message):
    with pytest.raises(InputError) as error:
        Family(**{**FIELDS, field: value})
    assert message in str(error.value)


def test_the_table_says_yes_where_the_vllm_plugin_has_the_family():
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

    from globalcom2.integrations.vllm import MODELS

    served = {model_type for model_type, architecture in NAMES.items() if architecture in MODELS}
    assert len(served) >= 5
    assert {name for name in list_models() if families.get_family(name).vllm} == served & set(list_models())


def test_methods_and_families_share_a_loader():
    assert families.load_entry_points is methods.load_entry_points is plugins.load_entry_points
    assert globalcom2.Family is Family
