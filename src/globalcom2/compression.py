"""The old place of `globalcom2.hf.compression`, kept for code that imports from here."""

from globalcom2.hf.compression import Compression, apply, compress, current, remove

__all__ = ["Compression", "apply", "compress", "current", "remove"]
