"""The page docs/methods.md: selectors with their options, presets and settings, from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from typing import Any

from globalcom2.core.method import Method
from globalcom2.core.methods import get_method, list_methods
from globalcom2.core.presets import PRESETS

HEAD = """\
# Methods and presets

Made by `globalcom2 methods --markdown`, from signatures and docstrings.

A method, also called a selector, looks at the scores of an image's views and says which tokens come first. It never says
how many: the budget follows from the image's size and `retention_ratio`.

```python
from globalcom2 import compress, load_mini

model, processor = load_mini()
with compress(model, 0.1, method="globalcom2", alpha=0.5):
    ...
with compress(model, 0.1, method="globalcom2:alpha=0.5,newlines=none"):
    ...
with compress(model, 0.1, preset="paper"):
    ...
```

```console
$ globalcom2 ask --method globalcom2:alpha=0.5,newlines=none
$ globalcom2 ask --method globalcom2:preset=paper
```

A method's text is the same in Python and on the command line. A function of your own can be a method too: [extending](extending.md#a-selector).

| method | what it does |
|---|---|"""
DEFAULTS = """
## Why these defaults

Four defaults of `globalcom2` are not the paper's. They were chosen on the mini model's tuning set
([how](evaluation.md#what-decides-the-defaults)). What they do on published checkpoints was not measured.

- `layer`: scores are read in the layer of the features, in LLaVA-NeXT the second-last, as in
  [FasterVLM](https://github.com/Theia-4869/FasterVLM)'s code. The paper reads the last. The language model never reads
  the last layer's output.
- `allocation="joint"`: the tokens of all crops stand in one order. The paper gives each crop a share by a softmax, which is
  never more than twice its even share, and nearly even for scores that are no logits.
- `alpha=0.15`: the thumbnail's say in which tokens stay. The paper found results stable over a wide range.
- `newlines="from_3"`: a line keeps its newline from its third kept token on. The published code keeps all newlines and counts
  none.

`preset="paper"` is the paper's method with exact budgets. `preset="published"` is the published code, but for its order of
crop tokens in padded images. That order is a defect and is not imitated. It keeps the published code's sets on all 20
recorded cases in `tests/golden`.
"""
PRESET_TEXTS = {
    "default": "what this package does where nothing else is said",
    "paper": "the paper's choices, with exact budgets",
    "published": "the published code's, with its rounding",
}


def methods_page() -> str:
    """The whole page, without a newline at its end."""
    from globalcom2.hf.compression import compress  # noqa: PLC0415
    from globalcom2.hf.config import CompressionConfig  # noqa: PLC0415

    found = [get_method(name) for name in list_methods()]
    lines = [HEAD, *(f"| [{method.name}](#{method.name}) | {method.summary} |" for method in found)]
    for method in found:
        lines += ["", *_section(method)]
    lines += ["", "## Presets", "", "Presets are settings of `globalcom2`. What else is passed wins.", ""]
    lines += ["| preset | what it is | settings |", "|---|---|---|"]
    for name, settings in PRESETS.items():
        shown = ", ".join(f"`{key}={value!r}`" for key, value in settings.items()) or "-"
        lines.append(f"| {name} | {PRESET_TEXTS.get(name, '-')} | {shown} |")
    lines += ["", "## Settings of every method", "", "Arguments of `compress`, and fields of `CompressionConfig`.", ""]
    defaults = CompressionConfig().to_dict()
    texts = argument_texts(compress)
    named = [
        (name, defaults[name])
        for name in inspect.signature(compress).parameters
        if name in defaults and name != "options"
    ]
    return "\n".join([*lines, *_listed(named, texts), DEFAULTS.rstrip()])


def _section(method: Method) -> list[str]:
    function = method.load()
    options = [
        (parameter.name, parameter.default)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.name != "counts"
    ]
    source = f"<{method.source}>" if method.source.startswith("http") else method.source
    lines = [f"## {method.name}", "", f"{method.summary}.", "", f"Source: {source}."]
    if not method.needs_grid:
        lines += ["", "It needs no grid, so it also works where nothing tells how an image was cut."]
    listed = _listed(options, argument_texts(function)) if options else ["It has no options."]
    return [*lines, "", *listed]


def _listed(options: list[tuple[str, Any]], texts: dict[str, str]) -> list[str]:
    """One entry per option: its name and default, and its meaning. A default of None is explained by the meaning."""
    lines = []
    for name, value in options:
        meaning, _, told = texts.get(name, "").partition(" Default: ")
        shown = f"`{name}`" if value is None else f"`{name}={value!r}`"
        more = f" Default: {told}" if value is None and told else ""
        lines.append(f"- {shown}: {meaning}{more}")
    return lines


def argument_texts(function: Any) -> dict[str, str]:
    """What a docstring's section of arguments says of each, in one line."""
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)+)", inspect.getdoc(function) or "", re.MULTILINE)
    entries = re.findall(r"^ {4}\*{0,2}(\w+): ((?:.*\n?)(?:^ {8}.*\n?)*)", section[1] if section else "", re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text).strip() for name, text in entries}
