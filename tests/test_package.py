"""The package as a whole: what importing it costs, who may import whom, what it exports, and that its texts are true."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import globalcom2

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "globalcom2"
WINGS = ["core", "selectors", "adapters", "hf", "integrations", "lab", "cli"]
"""From the bottom up; a wing imports those before it. errors, _version and mini stand below all of them."""
BASE = {"errors", "_version", "mini"}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "code",
    [
        "import globalcom2",
        "import globalcom2; globalcom2.list_methods(), globalcom2.list_models(), dir(globalcom2)",
        "import globalcom2.cli",
        "from globalcom2.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from globalcom2.cli import main\ntry: main(['ask', '--retention', '25'])\nexcept SystemExit: pass",
    ],
)
def test_light_imports(code):
    heavy = run(
        f"{code}\nimport sys; print('HEAVY', sorted({{'torch', 'transformers', 'matplotlib', 'numpy'}} & set(sys.modules)))"
    )
    assert heavy.strip().splitlines()[-1] == "HEAVY []"


def test_importing_changes_nothing_in_transformers():
    code = "import transformers.modeling_utils as m; before = set(m.ALL_ATTENTION_FUNCTIONS)\n"
    code += "import globalcom2.hf.compression, globalcom2.adapters.llava_next; print(before == set(m.ALL_ATTENTION_FUNCTIONS))"
    assert run(code).strip() == "True"


def test_imports_point_one_way():
    level = {wing: n for n, wing in enumerate(WINGS)}
    for file in SOURCE.rglob("*.py"):
        own = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        if own not in level and own not in BASE:
            continue
        for node in _imports_at_run_time(ast.parse(file.read_text())):
            for name in node:
                if name.startswith("globalcom2."):
                    other = name.split(".")[1]
                    assert other == own or other in BASE or level[other] < level[own], f"{file.name} imports {name}"


def _imports_at_run_time(tree: ast.Module):
    typing_only = {
        id(n)
        for block in tree.body
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for n in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "globalcom2":
            yield [f"globalcom2.{alias.name}" for alias in node.names if (SOURCE / f"{alias.name}.py").exists()]
        elif isinstance(node, ast.ImportFrom):
            yield [node.module or ""]


def test_only_adapters_and_what_stands_on_them_know_transformers():
    allowed = {"adapters", "hf", "mini", "lab", "integrations"}
    for file in SOURCE.rglob("*.py"):
        own = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        if own not in allowed:
            assert not re.search(r"^\s*(from|import) transformers", file.read_text(), re.M), file


def test_vllm_is_known_to_its_integration_alone():
    light = {"__init__.py", "options.py", "metrics.py", "serving.py"}  # imported without vLLM
    for file in SOURCE.rglob("*.py"):
        if file.parent.name != "vllm" or file.name in light:
            assert not re.search(r"^(from|import) vllm", file.read_text(), re.M), file


def test_exports_are_sorted_and_complete():
    assert sorted(globalcom2.__all__) == sorted(set(globalcom2.__all__))
    assert globalcom2.__all__ == sorted(globalcom2.__all__)
    for name in globalcom2.__all__:
        assert getattr(globalcom2, name) is not None
    assert not {name for name in globalcom2.__all__ if (SOURCE / f"{name}.py").exists()}, "a module would shadow it"
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        globalcom2.nope  # noqa: B018


def test_users_never_meet_an_assert():
    for file in SOURCE.rglob("*.py"):
        assert not [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Assert)], file


@pytest.mark.parametrize("name", globalcom2.list_methods())
def test_every_method_names_its_source(name):
    method = globalcom2.core.methods.get_method(name)
    assert re.search("Paper:|Source:", method.load().__doc__)
    assert method.summary
    assert method.source


def test_the_changelog_knows_this_version():
    assert f"## {globalcom2.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_readme_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_a_method_of_another_package(monkeypatch):
    from globalcom2.core import methods

    calls = []
    module = type(sys)("other_package")
    module.best = lambda views, ratio, *, power=1: (
        calls.append(power) or methods.get_method("uniform").load()(views, ratio)
    )
    monkeypatch.setitem(sys.modules, "other_package", module)
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    mine = methods.Method("best", "other_package:best", "summary", "source")
    methods.register_method(mine)
    with pytest.raises(globalcom2.InputError, match="already registered"):
        methods.register_method(mine)
    import torch

    keep = globalcom2.select(
        globalcom2.Views(torch.randn(4, 16), grid=(2, 2), thumbnail_scores=torch.randn(16)), 0.25, "best", power=2
    )
    assert int(keep.crops.sum() + keep.thumbnail.sum()) == 20
    assert calls == [2]
    with pytest.raises(globalcom2.InputError, match="Did you mean 'power'"):
        methods.check_options(mine, {"powr": 1})
