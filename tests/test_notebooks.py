"""The notebooks as they are committed. `make test-docs` runs them."""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_BYTES = 600_000
PLACES = re.compile(r"(?<![\w.:/<-])/(?:home|root|tmp|usr|opt|var|mnt|Users|private|work)/|[A-Z]:\\\\")
TIMES = re.compile(r"\d (?:s|ms|seconds|minutes)\b")


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text())


def test_there_are_two_and_the_first_has_five_cells():
    assert [path.stem for path in NOTEBOOKS] == ["first_steps", "your_own_selector"]
    assert len(code_cells(json.loads(NOTEBOOKS[0].read_text()))) == 5
    assert all(path.stat().st_size < MOST_BYTES for path in NOTEBOOKS)


def test_outputs_are_of_one_run_from_the_top(notebook):
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert any("Report(" in "".join(output.get("data", {}).get("text/plain", "")) for output in outputs)


def test_outputs_tell_nothing_of_the_machine(notebook):
    """No path, no message on standard error, no time that reads like a claim."""
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert not PLACES.search(json.dumps(notebook))
    for cell in code_cells(notebook):
        assert not cell["metadata"]
        for output in cell["outputs"]:
            assert output.get("name") != "stderr"
            shown = "".join([*output.get("text", ""), *output.get("data", {}).get("text/plain", "")])
            assert not TIMES.search(shown), shown


def test_nothing_is_imported_that_no_extra_brings(notebook):
    known = {"globalcom2", "numpy", "pandas", "torch", "pathlib", "subprocess", "sys", "tempfile"}
    source = "\n".join("".join(cell["source"]) for cell in code_cells(notebook))
    assert set(re.findall(r"^(?:from|import) (\w+)", source, re.M)) <= known
