"""What tables and plots call a run."""

import json
from pathlib import Path

import pytest

from globalcom2.core.presets import PRESETS
from globalcom2.lab.evals import settings_of
from globalcom2.lab.labels import FULL, label, options_label

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
PAPER = {"layer": -1, "allocation": "softmax", "alpha": 0.5, "newlines": "counted"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"method": "globalcom2", "options": {}}, "globalcom2"),
        ({"method": "globalcom2", "options": PAPER}, "globalcom2, paper"),
        ({"method": "globalcom2", "options": {"alpha": 0.5, "allocation": "softmax"}}, "globalcom2, alpha=0.5, allocation=softmax"),
        ({"method": "globalcom2", "options": {**PAPER, "score": "similarity"}}, "globalcom2, paper, score=similarity"),
        ({"method": "globalcom2", "options": dict(PRESETS["published"])}, "globalcom2, published"),
        ({"method": "uniform", "options": PAPER}, "uniform, layer=-1, allocation=softmax, alpha=0.5, newlines=counted"),
        ({"method": "uniform"}, "uniform"),
        ({"method": "globalcom2:preset=paper"}, "globalcom2, paper"),
        ({"method": "globalcom2:preset=paper,alpha=0.3"}, "globalcom2, layer=-1, allocation=softmax, alpha=0.3, newlines=counted"),
        ({"method": "not-installed:x=1"}, "not-installed, x=1"),
        ({"method": FULL, "options": {}}, FULL),
        ({"method": "none"}, FULL),
    ],
)  # fmt: skip
def test_labels(row, expected):
    assert label(row) == expected


def test_options_alone():
    assert options_label("globalcom2", {}) == ""
    assert options_label("globalcom2", PAPER) == "paper"


def test_published_results_have_the_papers_preset():
    rows = json.loads((RESULTS / "mini-eval.json").read_text())["runs"]
    assert "globalcom2, paper" in {label(row) for row in rows}


def test_an_evaluation_writes_presets_out_and_asks_nothing_twice():
    spelled = "globalcom2:layer=-1,allocation=softmax,alpha=0.5,newlines=counted"
    settings = settings_of(["globalcom2:preset=paper", spelled, "uniform", "uniform"], [0.1, 1.0, 0.5])
    assert [(s.method, s.retention_ratio) for s in settings] == [
        (FULL, 1.0), ("globalcom2", 0.5), ("uniform", 0.5), ("globalcom2", 0.1), ("uniform", 0.1),
    ]  # fmt: skip
    assert settings[1].options == PAPER
    assert settings[1].name == "globalcom2 0.5 layer=-1 allocation=softmax alpha=0.5 newlines=counted"
