"""Methods that tests register themselves."""

import sys
import types

from globalcom2.core import methods


def register(monkeypatch, function, **wants):
    """A method "toy" whose function is `function`, until the test ends."""
    module = types.ModuleType("globalcom2_toys")
    module.toy = function
    monkeypatch.setitem(sys.modules, "globalcom2_toys", module)
    monkeypatch.setattr(methods, "_METHODS", {name: m for name, m in methods._METHODS.items() if name != "toy"})
    method = methods.Method("toy", "globalcom2_toys:toy", "toy", "a test", **wants)
    methods.register_method(method)
    return method
