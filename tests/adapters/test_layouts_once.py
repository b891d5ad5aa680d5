"""How an image is laid out is found out once per call, and the encoder is told."""

import pytest

from families import FAMILIES
from globalcom2 import compress
from globalcom2.adapters.anyres import AnyresAdapter
from globalcom2.adapters.families import get_family, load_adapter
from globalcom2.adapters.tagged import TaggedAdapter
from globalcom2.adapters.tiles import TilesAdapter
from tiny import picture

READERS = {AnyresAdapter: "layouts_of_sizes", TaggedAdapter: "views", TilesAdapter: "images"}
"""Per group of families, the method that reads a call's sizes, pixels or runs to find the layouts."""


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "llama4"])
def test_layouts_are_found_out_once(name, monkeypatch):
    tiny = FAMILIES[name]()
    cls = type(load_adapter(name))
    (reader,) = [reader for group, reader in READERS.items() if issubclass(cls, group)]
    calls = {"layouts": 0, reader: 0}

    def count(method):
        original = getattr(cls, method)

        def counted(*args, **kwargs):
            calls[method] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(cls, method, counted)

    for method in calls:
        count(method)
    inputs = tiny.inputs([f"{tiny.tag} a"], [picture(168, 168)])
    with compress(tiny.model, 0.5) as compression:
        tiny.model.generate(**inputs, max_new_tokens=1)
    assert len(compression.report) == 1
    assert calls == {"layouts": 1, reader: 1}, get_family(name).target
