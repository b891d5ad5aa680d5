"""What a report says, and of which call."""

import pickle
import sys

import pytest
import torch

from calls import generate
from globalcom2 import GlobalCom2Error, compress
from globalcom2.core.methods import get_method
from globalcom2.hf.report import COLUMNS
from tiny import picture


def test_the_report_is_that_of_the_last_call(tiny):
    inputs, text = tiny.inputs(["<image>"], [picture(84, 84)]), tiny.inputs(["text"], None)
    with compress(tiny.model, 0.1) as compression, torch.no_grad():
        generate(tiny.model, inputs)
        assert len(compression.report) == 1
        generate(tiny.model, text)
        assert len(compression.report) == 0
        tiny.model(**inputs)
        assert len(compression.report) == 1
        tiny.model(**text)
        assert len(compression.report) == 0


def test_reports_are_plain_data(tiny, batch):
    import json

    with compress(tiny.model, 0.2) as compression:
        generate(tiny.model, batch)
    report = compression.report
    assert set(report.seconds) == {"tower", "selection", "projection", "generation"}
    assert json.loads(json.dumps(report.to_dict()))["images"][1]["grid"] == [3, 1]
    assert report.tokens_after == sum(int(i.kept.sum()) for i in report)
    assert pickle.loads(pickle.dumps(report.to_dict())) == report.to_dict()
    assert "4 images" in repr(report)


def test_a_report_is_a_table_for_pandas(tiny, batch):
    pandas = pytest.importorskip("pandas")
    with compress(tiny.model, 0.2) as compression:
        empty = compression.report
        generate(tiny.model, batch)
    table = compression.report.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert len(table) == 4
    assert table["tokens_after"].sum() == compression.report.tokens_after
    assert set(table["method"]) == {"globalcom2"}
    assert set(table["retention_ratio"]) == {0.2}
    assert table["crop_ratios"][1] == compression.report[1].crop_ratios
    assert list(empty.to_pandas().columns) == list(table.columns)


def test_without_pandas_the_table_is_refused_with_a_cure(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with compress(tiny.model, 0.2) as compression, pytest.raises(GlobalCom2Error, match=r"pip install pandas.*to_dict"):
        compression.report.to_pandas()


def test_columns_of_the_table_are_the_keys_of_an_entry(tiny, batch):
    with compress(tiny.model, 0.2) as compression:
        generate(tiny.model, batch)
    assert tuple(compression.report[0].to_dict()) == COLUMNS


def test_scores_are_those_that_the_method_got(tiny, batch):
    seen = []

    def watched(views, retention_ratio):
        seen.append(views)
        return load_uniform(views, retention_ratio)

    load_uniform = get_method("uniform").load()
    with compress(tiny.model, 0.2, watched) as compression:
        generate(tiny.model, batch)
    asked = [views for views in seen if views.scores.shape[-1] == 36]  # the others are tried out before any call
    every = [scores for views in asked for scores in views.scores]
    for entry in compression.report:
        assert entry.scores.shape == entry.keep.crops.shape
        assert any(scores.shape == entry.scores.shape and torch.equal(scores, entry.scores) for scores in every)
        assert not entry.scores.requires_grad
