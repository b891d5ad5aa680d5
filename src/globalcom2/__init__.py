"""GlobalCom²: visual-token compression for high-resolution vision-language models, without training.

Importing this package imports neither torch nor transformers; the names below load what they need on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from globalcom2._version import __version__

if TYPE_CHECKING:
    from globalcom2.compression import Compression, apply, compress, remove
    from globalcom2.errors import GlobalCom2Error, InputError, UnsupportedModelError
    from globalcom2.families import list_models
    from globalcom2.methods import Method, list_methods, register_method
    from globalcom2.mini import load_mini
    from globalcom2.picture import draw_picture
    from globalcom2.report import Report
    from globalcom2.selection import Keep, select
    from globalcom2.views import Views

_WHERE = {
    "Compression": "compression",
    "GlobalCom2Error": "errors",
    "InputError": "errors",
    "Keep": "selection",
    "Method": "methods",
    "Report": "report",
    "UnsupportedModelError": "errors",
    "Views": "views",
    "apply": "compression",
    "compress": "compression",
    "draw_picture": "picture",
    "list_methods": "methods",
    "list_models": "families",
    "load_mini": "mini",
    "register_method": "methods",
    "remove": "compression",
    "select": "selection",
}

__all__ = [
    "Compression",
    "GlobalCom2Error",
    "InputError",
    "Keep",
    "Method",
    "Report",
    "UnsupportedModelError",
    "Views",
    "__version__",
    "apply",
    "compress",
    "draw_picture",
    "list_methods",
    "list_models",
    "load_mini",
    "register_method",
    "remove",
    "select",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'globalcom2' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"globalcom2.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
