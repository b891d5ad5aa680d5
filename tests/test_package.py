"""The package as a whole: what importing it costs, who may import whom, what it exports, and that its texts are true."""

import ast
import functools
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import globalcom2

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "globalcom2"
WINGS = [
    {"errors", "_version"},
    {"mini"},
    {"core"},
    {"selectors", "adapters", "drawing"},
    {"hf"},
    {"integrations", "lab"},
    {"web"},
    {"cli"},
]
"""From the bottom up: a wing imports those before its line, and itself."""
LAZY = {"globalcom2", "globalcom2.__main__", "globalcom2.compression"}
"""They hand on names of the wings, lazily or for older imports; nothing in the wings imports them."""


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


def test_imports_have_no_circle():
    """All imports, typing-only ones and those inside functions too."""
    graph = {module: imported - LAZY for module, imported in module_imports().items() if module not in LAZY}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_imports_point_one_way():
    level = {wing: number for number, wings in enumerate(WINGS) for wing in wings}
    found = sorted({wing_of(module) for module in module_imports()} - {"", *level})
    assert not found, f"wings without a place in WINGS: {found}"
    wrong = []
    for module, imported in module_imports().items():
        own = wing_of(module)
        if own:
            others = [(wing_of(name), name) for name in imported]
            wrong += [
                f"{module} imports {name}"
                for other, name in others
                if other != own and not level.get(other, 99) < level[own]
            ]
    assert not wrong, wrong


def test_core_and_selectors_know_no_model_and_no_drawing():
    wrong = []
    for file in sorted(SOURCE.rglob("*.py")):
        own = file.relative_to(SOURCE).parts[0]
        if own in ("core", "selectors"):
            roots = {name.split(".")[0] for name in imports_of(file)}
            wrong += [f"{own}/{file.name} imports {name}" for name in roots & {"transformers", "vllm", "matplotlib"}]
        if own == "selectors":
            ours = {wing_of(name) for name in module_imports()[name_of(file)]}
            wrong += [f"{own}/{file.name} imports {name}" for name in ours - {"core", "errors", "selectors"}]
    assert not wrong, wrong


def test_few_files_lie_in_the_root_and_every_wing_says_what_it_is():
    assert len(list(SOURCE.glob("*.py"))) <= 6
    for folder in {file.parent for file in SOURCE.rglob("*.py")}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_long_functions_give_a_reason():
    """`Long:` in a docstring is followed by the reason."""
    wrong = []
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = code_lines(node)
                if lines > 50 and not re.search(r"\bLong: \S", ast.get_docstring(node) or ""):
                    wrong.append(f"{file.relative_to(SOURCE)}:{node.lineno} {node.name}: {lines} lines")
    assert not wrong, wrong


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def name_of(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def wing_of(module: str) -> str:
    """The wing, or the file of the root, that a module belongs to; "" for what only hands names on."""
    return "" if module in LAZY else module.split(".")[1]


def imports_of(file: Path) -> set[str]:
    """Every dotted name that a file imports, anywhere in it; `from a import b` gives `a` and `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@functools.cache
def module_imports() -> dict[str, set[str]]:
    """Which modules of the package each of its modules imports."""
    files = {name_of(file): file for file in SOURCE.rglob("*.py")}
    graph = {}
    for module, file in files.items():
        imported = set()
        for name in imports_of(file):
            while name.startswith("globalcom2") and name not in files:
                name = name.rpartition(".")[0]
            if name in files:
                imported.add(name)
        graph[module] = imported
    return graph


def test_only_adapters_and_what_stands_on_them_know_transformers():
    allowed = {"adapters", "hf", "mini", "lab", "integrations"}
    for file in SOURCE.rglob("*.py"):
        own = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        if own not in allowed:
            assert not re.search(r"^\s*(from|import) transformers", file.read_text(), re.M), file


def test_vllm_is_known_to_its_integration_alone():
    light = {
        "__init__.py",
        "flags.py",
        "gate.py",
        "middleware.py",
        "names.py",
        "options.py",
        "serving.py",
    }  # imported without vLLM
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
