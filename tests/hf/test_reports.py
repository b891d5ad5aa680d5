"""What a report says, and of which call."""

import pickle

import torch

from calls import generate
from globalcom2 import compress
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
