"""GlobalCom²: visual-token compression for high-resolution vision-language models, without training.

Importing this package imports neither torch nor transformers; the names below load what they need on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from globalcom2._version import __version__

if TYPE_CHECKING:
    from globalcom2.adapters.families import list_models, register_family
    from globalcom2.adapters.family import Family
    from globalcom2.core.method import Method
    from globalcom2.core.methods import list_methods, register_method
    from globalcom2.core.ranking import Ranking
    from globalcom2.core.selection import Keep, select
    from globalcom2.core.views import Views
    from globalcom2.errors import DataError, GlobalCom2Error, InputError, UnsupportedModelError
    from globalcom2.hf.compression import Compression, apply, compress, current, remove
    from globalcom2.hf.config import CompressionConfig
    from globalcom2.hf.report import ImageReport, Report
    from globalcom2.lab.estimates import estimate
    from globalcom2.lab.images import open_image
    from globalcom2.lab.picture import draw_picture
    from globalcom2.lab.sheets import draw_page
    from globalcom2.mini import load_mini

_WHERE = {
    "Compression": "hf.compression",
    "CompressionConfig": "hf.config",
    "DataError": "errors",
    "Family": "adapters.family",
    "GlobalCom2Error": "errors",
    "ImageReport": "hf.report",
    "InputError": "errors",
    "Keep": "core.selection",
    "Method": "core.method",
    "Ranking": "core.ranking",
    "Report": "hf.report",
    "UnsupportedModelError": "errors",
    "Views": "core.views",
    "apply": "hf.compression",
    "compress": "hf.compression",
    "current": "hf.compression",
    "draw_page": "lab.sheets",
    "draw_picture": "lab.picture",
    "estimate": "lab.estimates",
    "list_methods": "core.methods",
    "list_models": "adapters.families",
    "load_mini": "mini",
    "open_image": "lab.images",
    "register_family": "adapters.families",
    "register_method": "core.methods",
    "remove": "hf.compression",
    "select": "core.selection",
}

__all__ = [
    "Compression",
    "CompressionConfig",
    "DataError",
    "Family",
    "GlobalCom2Error",
    "ImageReport",
    "InputError",
    "Keep",
    "Method",
    "Ranking",
    "Report",
    "UnsupportedModelError",
    "Views",
    "__version__",
    "apply",
    "compress",
    "current",
    "draw_page",
    "draw_picture",
    "estimate",
    "list_methods",
    "list_models",
    "load_mini",
    "open_image",
    "register_family",
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
