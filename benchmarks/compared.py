"""The tables of docs/methods-compared.md: what each method does and when it wins, from a result and the registry.

benchmarks/tables.py puts them in place. Every figure and every name of a winner is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np

from globalcom2.core.method import Method
from globalcom2.core.methods import get_method, list_methods
from globalcom2.core.presets import PRESET_METHOD
from globalcom2.lab.labels import is_full, label, percent
from globalcom2.lab.paired import AHEAD, BEHIND, DEFAULT, LEVEL, is_default, standing, with_differences

Rows = list[dict[str, Any]]
INSIDE = {
    "fastv": "FastV (https://arxiv.org/abs/2403.06764)",
    "pyramiddrop": "PyramidDrop (https://arxiv.org/abs/2410.17247)",
}
MARKS = {AHEAD: "\N{BLACK UP-POINTING TRIANGLE}", LEVEL: "=", BEHIND: "\N{BLACK DOWN-POINTING TRIANGLE}"}
"""Of a standing, in cells."""
FLOOR = ("random", "downsample", "thumbnail_only", "uniform")
"""Methods that others should beat."""


def rows_of(result: dict[str, Any]) -> Rows:
    """A result's runs with their paired differences, which files of older versions lack."""
    rows: Rows = result["runs"]
    if all("difference" in row for row in rows):
        return rows
    pictures = result["pictures"]
    return with_differences(rows, np.repeat(np.arange(pictures), rows[0]["questions"] // pictures))


def who_wins(result: dict[str, Any]) -> str:
    """One row per ratio: who is ahead of the default, who is level with it, and how many are behind."""
    lines = ["| ratio | ahead of the default | level with it | behind it |", "|---|---|---|---|"]
    for ratio, rows in by_ratio(rows_of(result)).items():
        ahead, level, behind = ([row for row in rows if standing(row) == stands] for stands in (AHEAD, LEVEL, BEHIND))
        named = ("; ".join(_with_difference(row) for row in own) or "nobody" for own in (ahead, level))
        lines.append(f"| {ratio:g} | {' | '.join(named)} | {len(behind) or 'nobody'} |")
    return "\n".join(lines)


def in_words(result: dict[str, Any]) -> str:
    """Who wins where, one sentence per ratio, and per kind of question."""
    found = rows_of(result)
    full = next(row for row in found if is_full(row))
    lines = [f"- With all tokens the model answers {percent(full['accuracy'])} rightly."]
    equal = {ratio: [row for row in rows if standing(row)] for ratio, rows in by_ratio(found).items()}
    for ratio, rows in equal.items():
        lines.append(f"- **Ratio {ratio:g}.** {_sentence(rows)}")
    kinds = list(full["kinds"])
    for ratio, rows in equal.items():
        winners = {kind: _best_at(rows, kind) for kind in kinds}
        told = "; ".join(f"{kind}: {' / '.join(names)}" for kind, names in winners.items())
        lines.append(f"- Highest figure per kind of question at {ratio:g}: {told}.")
    return "\n".join(lines)


def standings(result: dict[str, Any]) -> str:
    """One row per method: accuracy at each ratio with its difference to the default, tokens and times."""
    found = rows_of(result)
    ratios = list(by_ratio(found))
    middle = ratios[1 % len(ratios)]
    lines = [
        f"| method | {' | '.join(f'ratio {ratio:g}' for ratio in ratios)} | selection ms | share |",
        "|---|" + "---|" * (len(ratios) + 2),
    ]
    own = by_label(found)
    for name in sorted(own, key=lambda one: -mean(row["accuracy"] for row in own[one])):
        rows = {row["retention_ratio"]: row for row in own[name]}
        cells = [_cell(rows.get(ratio)) for ratio in ratios]
        timed = rows.get(middle, {})
        took = timed.get("selection_ms")
        cells += ["-" if took is None else f"{took:.2f}", percent(timed.get("selection_share"))]
        lines.append(f"| {_bold(name, own[name])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tokens(result: dict[str, Any]) -> str:
    """Visual tokens per image at each ratio, one row per group of methods that read as many."""
    found = rows_of(result)
    ratios = list(by_ratio(found))
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, rows in by_label(found).items():
        counts = {row["retention_ratio"]: f"{row['visual_tokens']:.1f}" for row in rows}
        groups.setdefault(tuple(counts.get(ratio, "-") for ratio in ratios), []).append(name)
    lines = [
        "| visual tokens per image | " + " | ".join(f"{ratio:g}" for ratio in ratios) + " |",
        "|---|" + "---|" * len(ratios),
    ]
    largest = max(groups.values(), key=len)
    for counts, names in groups.items():
        told = "all others" if names is largest and len(groups) > 1 else ", ".join(names)
        lines.append(f"| {told} | {' | '.join(counts)} |")
    return "\n".join(lines)


def each(result: dict[str, Any]) -> str:
    """A short paragraph per method."""
    found = rows_of(result)
    full = next(row for row in found if is_full(row))
    own = by_label(found)
    names = sorted(list_methods(), key=lambda name: (name != PRESET_METHOD, name in FLOOR, name))
    parts = []
    for name in names:
        mine = {one: rows for one, rows in own.items() if rows[0]["method"] == name}
        if mine:
            parts += [f"### `{name}`", "", _about(get_method(name)), "", *_findings(mine, full), ""]
    for inside, told in INSIDE.items():
        mine = {
            one: rows
            for one, rows in own.items()
            if rows[0].get("options", {}).get("inside") == inside and rows[0]["method"] not in names
        }
        if mine:
            text = f"{told}: tokens leave inside the language model. No selection comes first."
            parts += [f"### `inside={inside}` alone", "", text, "", *_findings(mine, full), ""]
    return "\n".join(parts).rstrip()


def by_ratio(rows: Rows) -> dict[float, Rows]:
    """Rows of each ratio below 1, the best first."""
    ratios = dict.fromkeys(row["retention_ratio"] for row in rows if not is_full(row))
    own = {ratio: [row for row in rows if row["retention_ratio"] == ratio and not is_full(row)] for ratio in ratios}
    return {ratio: sorted(found, key=lambda row: -row["accuracy"]) for ratio, found in own.items()}


def by_label(rows: Rows) -> dict[str, Rows]:
    """Rows of each method with its options, but for all tokens."""
    found: dict[str, Rows] = {}
    for row in rows:
        if not is_full(row):
            found.setdefault(label(row), []).append(row)
    return found


def _sentence(rows: Rows) -> str:
    default = next((row for row in rows if is_default(row)), None)
    if default is None:
        return "The default was not tried."
    best = rows[0]
    ahead, level, behind = (_count(rows, stands) for stands in (AHEAD, LEVEL, BEHIND))
    place = 1 + sum(row["accuracy"] > default["accuracy"] for row in rows)
    first = f"The default answers {percent(default['accuracy'])} rightly, place {place} of {len(rows)}."
    winner = "" if place == 1 else f" The highest figure is that of {label(best)}, {percent(best['accuracy'])}."
    return f"{first}{winner} Beyond the noise {ahead} ahead of it and {behind} behind; {level} level."


def _count(rows: Rows, stands: str) -> str:
    count = sum(standing(row) == stands for row in rows)
    return "nobody is" if count == 0 else "one is" if count == 1 else f"{count} are"


def _best_at(rows: Rows, kind: str) -> list[str]:
    """Those with the highest figure, at most three by name."""
    top = max(row["kinds"][kind] for row in rows)
    names = [label(row) for row in rows if row["kinds"][kind] == top]
    return names if len(names) <= 3 else [*names[:3], f"{len(names) - 3} more"]


def _about(method: Method) -> str:
    source = f" Source: {method.source}." if method.source else ""
    rule = method.code_newlines
    newlines = "" if rule is None else f" Its own published code has newlines=`{rule}`."
    return f"{method.summary}.{source}{newlines}"


def _findings(mine: dict[str, Rows], full: dict[str, Any]) -> list[str]:
    lines = []
    for name, rows in mine.items():
        kinds = {kind: mean(row["kinds"][kind] for row in rows) - whole for kind, whole in full["kinds"].items()}
        best, worst = max(kinds, key=lambda kind: kinds[kind]), min(kinds, key=lambda kind: kinds[kind])
        told = "; ".join(f"{row['retention_ratio']:g}: {_verdict(row)}" for row in rows)
        spread = (
            f"Loses least in `{best}` ({100 * kinds[best]:+.1f} points), most in `{worst}` ({100 * kinds[worst]:+.1f})"
        )
        lines.append(f"- {name}. {told}. {spread}.")
    return lines


def _verdict(row: dict[str, Any]) -> str:
    stands = standing(row)
    if stands == DEFAULT:
        return percent(row["accuracy"])
    if not stands:
        return f"{percent(row['accuracy'])} with {row['visual_tokens']:.0f} tokens"
    return f"{percent(row['accuracy'])}, {stands}"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    if is_default(row):
        return percent(row["accuracy"])
    if row["difference"] is None:
        return f"{percent(row['accuracy'])} with {row['visual_tokens']:.0f} tokens"
    low, high = (100 * end for end in row["difference_interval"])
    shown = f"{100 * row['difference']:+.1f} ({low:.1f} to {high:.1f})"
    return f"{percent(row['accuracy'])} {MARKS[standing(row)]} {shown}"


def _with_difference(row: dict[str, Any]) -> str:
    return f"{label(row)} {100 * row['difference']:+.1f}"


def _bold(name: str, rows: Sequence[dict[str, Any]]) -> str:
    return f"**{name}**" if is_default(rows[0]) else name
