"""Puts the tables of README, docs and model card in place, from the results in benchmarks/results.

python benchmarks/tables.py            rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->`
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from globalcom2.adapters.families import get_family, list_models
from globalcom2.lab.dataset import load_examples
from globalcom2.lab.estimates import estimate_costs, named_configs
from globalcom2.lab.intervals import Bootstrap, interval
from globalcom2.lab.labels import FULL, label, options_label, percent
from globalcom2.lab.summaries import markdown_table
from globalcom2.mini import EVALUATION_SET

sys.path.insert(0, str(Path(__file__).parent))  # where this file is loaded instead of run, too
import compared
import gpu_tables
import guides
import native_mini

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (
    "README.md",
    "docs/costs.md",
    "docs/evaluation.md",
    "docs/inside.md",
    "docs/measured.md",
    "docs/methods-compared.md",
    "docs/native.md",
    "docs/tune.md",
    "docs/which-ratio.md",
    "src/globalcom2/mini/MODEL_CARD.md",
)
EVALUATION = ("mini-eval", "mini-eval-above")
IN_SHORT = (FULL, "globalcom2", "globalcom2, paper", "uniform", "random")
"""Rows of the tables of README and docs/evaluation.md, by label; docs/methods-compared.md has all."""
BLOCK = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def result(name: str) -> dict[str, Any]:
    """A committed result."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def runs(name: str) -> list[dict[str, Any]]:
    """Rows of a committed result."""
    found: list[dict[str, Any]] = result(name)["runs"]
    return found


def whole_evaluation() -> dict[str, Any]:
    """The evaluation's runs of all files, largest ratio first: all methods, and higher ratios of some."""
    found: dict[tuple[str, float], dict[str, Any]] = {}
    for name in EVALUATION:
        for row in runs(name):
            found.setdefault((label(row), row["retention_ratio"]), row)
    rows = sorted(found.values(), key=lambda row: -row["retention_ratio"])
    return {**result(EVALUATION[0]), "runs": rows}


def evaluation() -> list[dict[str, Any]]:
    """Rows of the evaluation for pages that do not compare all methods."""
    return [row for row in whole_evaluation()["runs"] if label(row) in IN_SHORT]


def short() -> str:
    """Evaluation, three ratios."""
    return markdown_table([row for row in evaluation() if row["retention_ratio"] in (1.0, 0.25, 0.1)])


def reading() -> str:
    """Reading with its intervals, and the difference to `uniform` on the same questions."""
    examples = load_examples(EVALUATION_SET)
    read = np.array([question.kind == "read" for example in examples for question in example.questions])
    owner = np.repeat(np.arange(len(examples)), [len(example.questions) for example in examples])
    bootstrap, rows = Bootstrap(owner), evaluation()
    drawn = {(label(r), r["retention_ratio"]): bootstrap.accuracies(_right(r), read) for r in rows}
    exact = {(label(r), r["retention_ratio"]): r["kinds"]["read"] for r in rows}
    lines = ["| method | ratio | read | 95 % interval | minus uniform, points |", "|---|---|---|---|---|"]
    for row in rows:
        low, high = row["kind_intervals"]["read"]
        method, ratio = label(row), row["retention_ratio"]
        other, difference = drawn.get(("uniform", ratio)), ""
        if other is not None and method != "uniform":
            least, most = interval(100 * (drawn[method, ratio] - other))
            difference = f"{100 * (exact[method, ratio] - exact['uniform', ratio]):+.1f} ({least:+.1f} to {most:+.1f})"
        cells = (method, f"{ratio:g}", percent(row["kinds"]["read"]), f"{percent(low)} to {percent(high)}", difference)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _right(row: dict[str, Any]) -> NDArray[np.bool_]:
    return np.array([digit == "1" for digit in row["right"]])


def analysis() -> str:
    """Whole views."""
    rows = runs("mini-analysis")
    kinds = list(rows[0]["kinds"])
    lines = [
        "| views | visual tokens | " + " | ".join(kinds) + " | all | 95 % interval | of all tokens' |",
        "|---|---|" + "---|" * (len(kinds) + 3),
    ]
    for row in rows:
        low, high = row["interval"]
        cells = [row["condition"], f"{row['visual_tokens']:.0f}", *(percent(row["kinds"][kind]) for kind in kinds)]
        cells += [percent(row["accuracy"]), f"{percent(low)} to {percent(high)}", percent(row["relative"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sweep() -> str:
    """Settings on the tuning set."""
    rows = runs("mini-sweep")
    kinds = list(rows[0]["kinds"])
    lines = [
        "| method | options | visual tokens | " + " | ".join(kinds) + " | all | 95 % interval |",
        "|---|---|---|" + "---|" * (len(kinds) + 2),
    ]
    for row in rows:
        options = options_label(row["method"], row["options"]) or "defaults"
        low, high = row["interval"]
        cells = [row["method"], options, f"{row['visual_tokens']:.1f}", *(percent(row["kinds"][k]) for k in kinds)]
        lines.append("| " + " | ".join([*cells, percent(row["accuracy"])]) + f" | {percent(low)} to {percent(high)} |")
    return "\n".join(lines)


def commander() -> str:
    """What decided the defaults of `globalcom2`: one row per setting, one column per ratio."""
    rows = runs("mini-commander")
    ratios = sorted({row["retention_ratio"] for row in rows}, reverse=True)[1:]
    lines = ["| setting | " + " | ".join(f"{ratio:g}" for ratio in ratios) + " |", "|---|" + "---|" * len(ratios)]
    found: dict[str, dict[float, dict[str, Any]]] = {}
    for row in rows[1:]:
        named = label(row) + ("" if row["options"] else ", defaults")
        found.setdefault(named, {})[row["retention_ratio"]] = row
    for named, own in found.items():
        cells = [percent(own[ratio]["accuracy"]) if ratio in own else "" for ratio in ratios]
        lines.append(f"| {named} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def inside() -> str:
    """Tokens that leave inside the language model, alone and after a selection."""
    lines = ["| ratio | method | tokens | answered rightly | minus default, points |", "|---|---|---|---|---|"]
    for row in runs("mini-eval-inside"):
        low, high = row["difference_interval"] or (None, None)
        difference = "" if low is None else f"{100 * row['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        cells = [f"{row['retention_ratio']:g}", label(row), f"{row['visual_tokens']:.0f}", percent(row["accuracy"])]
        lines.append(f"| {' | '.join([*cells, difference])} |")
    return "\n".join(lines)


def digits_kept() -> str:
    """Digits that stay, one column per ratio."""
    rows = runs("mini-digits-kept")
    ratios = list(dict.fromkeys(row["retention_ratio"] for row in rows))
    lines = [
        "| selector | " + " | ".join(f"ratio {ratio:g}" for ratio in ratios) + " |",
        "|---|" + "---|" * len(ratios),
    ]
    for setting in dict.fromkeys(row["setting"] for row in rows):
        own = [row for row in rows if row["setting"] == setting]
        cells = [f"{percent(r['covered'])} ({percent(r['interval'][0])} to {percent(r['interval'][1])})" for r in own]
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gpu() -> str:
    """Time to first token of the 7B geometry, by phase."""
    found = json.loads((RESULTS / "bench-7b-h200.json").read_text())
    lines = [
        "| batch | ratio | visual tokens | tower ms | selection ms | projection ms | prefill ms | to first token ms | spread | speed-up | predicted "
        "| images/s | decode ms/token | peak GB |",
        "|---|" + "---|" * 13,
    ]
    for row in found["rows"]:
        phases = (row[f"{phase}_seconds"] * 1e3 for phase in ("tower", "selection", "projection", "prefill", "ttft"))
        cells = [f"{row['batch_size']}", f"{row['retention_ratio']:g}", f"{row['visual_tokens']}"]
        cells += [f"{milliseconds:.1f}" for milliseconds in phases]
        cells += [percent(row["ttft_spread"]), f"{row['speedup']:.2f}x", f"{row['predicted_speedup']:.2f}x"]
        cells += [f"{row['images_per_second']:.1f}", f"{row['decode_seconds_per_token'] * 1e3:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{row['peak_memory_bytes'] / 1e9:.1f}"]) + " |")
    return "\n".join(lines)


def which_ratio() -> str:
    """Quality of the mini model beside the costs of LLaVA-NeXT-7B, one row per ratio."""
    quality = {r["retention_ratio"]: r for r in evaluation() if label(r) in (FULL, "globalcom2")}
    measured = json.loads((RESULTS / "bench-7b-h200.json").read_text())["rows"]
    speed = {row["retention_ratio"]: row for row in measured if row["batch_size"] == 16}
    ratios = [ratio for ratio in (1.0, 0.5, 0.25, 0.1, 0.05, 0.03) if ratio in quality]
    costs = estimate_costs(named_configs()["llava-next-7b"], (672, 672), ratios)
    lines = [
        "| ratio | accuracy kept | reading | counting | operations | KV cache | first token | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cost in costs:
        own, timed = quality[cost["retention_ratio"]], speed.get(cost["retention_ratio"])
        kinds = (percent(own["kinds"]["read"]), percent(own["kinds"]["count"]))
        cells = [f"{cost['retention_ratio']:g}", percent(own["relative"]), *kinds, percent(cost["share_of_whole"])]
        cells += [f"{cost['kv_cache_bytes'] / 2**20:,.0f} MiB"]
        cells += ["-", "-"] if timed is None else _timed(timed)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _timed(row: dict[str, Any]) -> list[str]:
    return [f"{row['ttft_seconds']:.2f} s", f"{row['peak_memory_bytes'] / 1e9:.1f} GB"]


def by_use() -> str:
    """Accuracy of `globalcom2` by kind of question, one row per ratio."""
    columns = {
        "exists": "is it there",
        "color": "color",
        "left": "left or right",
        "largest": "largest",
        "read": "reading",
        "document": "documents",
        "count": "counting",
    }
    rows = [row for row in evaluation() if label(row) in (FULL, "globalcom2")]
    lines = [f"| ratio | visual tokens | {' | '.join(columns.values())} |", "|---|---|" + "---|" * len(columns)]
    for row in rows:
        cells = [f"{row['retention_ratio']:g}", f"{row['visual_tokens']:.0f}"]
        lines.append("| " + " | ".join([*cells, *(percent(row["kinds"][kind]) for kind in columns)]) + " |")
    return "\n".join(lines)


def tune_sets() -> str:
    """What `tune` promised on sets that were drawn from recorded answers, one row per bound."""
    lines = [
        "| `--max-loss` | sets with a promise | false promises | promised at 0.25 | at 0.1 |",
        "|---|---|---|---|---|",
    ]
    for bound, own in result("mini-tune-trials")["drawn_sets"].items():
        cells = [f"{100 * float(bound):g}%", f"{own['promised']} of {own['sets']}", f"{own['false']}"]
        lines.append("| " + " | ".join([*cells, *(f"{count}" for count in own["promised_ratios"].values())]) + " |")
    return "\n".join(lines)


def tune_bounds() -> str:
    """In how many sets each kind of bound promises, and how often falsely in the worst case."""
    setting, worst = result("mini-tune-trials")["bounds"].values()
    shown = ("0.015", "0.02", "0.03")
    heads = " | ".join(f"{100 * float(bound):g}%" for bound in shown)
    lines = [f"| bound | {heads} | false, worst case |", "|---|" + "---|" * (len(shown) + 1)]
    for name, false in worst.items():
        used = " on other pictures (used)" if name == "one bet, chosen" else ""
        shares = [*(setting[bound][name] for bound in shown), false]
        lines.append(f"| {name}{used} | " + " | ".join(f"{100 * share:.1f}%" for share in shares) + " |")
    return "\n".join(lines)


def families() -> str:
    """Supported families: those that cut images one line each, with a checkpoint's name on the hub; all others in one."""
    known = [get_family(name) for name in list_models()]
    native = [family for family in known if family.thumbnail.startswith("none")]
    lines = ["| model type | a checkpoint |", "|---|---|"]
    for family in known:
        if family not in native:
            lines.append(f"| `{family.model_type}` | {next(iter(family.checkpoints), '-')} |")
    names = ", ".join(f"`{family.model_type}`" for family in native)
    return "\n".join([*lines, "", f"Images that keep their resolution: {names}."])


TABLES: dict[str, Callable[[], str]] = {
    "eval-short": short,
    "eval": lambda: markdown_table(evaluation()),
    "compared-words": lambda: compared.in_words(result(EVALUATION[0])),
    "compared-winners": lambda: compared.who_wins(result(EVALUATION[0])),
    "compared-all": lambda: compared.standings(result(EVALUATION[0])),
    "compared-tokens": lambda: compared.tokens(result(EVALUATION[0])),
    "compared-each": lambda: compared.each(result(EVALUATION[0])),
    "reading": reading,
    "analysis": analysis,
    "commander": commander,
    "guides": lambda: guides.table(result("mini-guides")),
    "native-mini": lambda: native_mini.table(result("native-mini-tuning")),
    "inside": inside,
    "digits-kept": digits_kept,
    "sweep": sweep,
    "gpu": gpu,
    "gpu-selection": lambda: gpu_tables.selection(result("selection-h100")),
    "gpu-native": lambda: gpu_tables.native(result("native-7b-h100")),
    "which-ratio": which_ratio,
    "by-use": by_use,
    "tune-sets": tune_sets,
    "tune-bounds": tune_bounds,
    "families": families,
}


def filled(text: str) -> str:
    """A page with its tables made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def main() -> None:
    """Rewrite the pages."""
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text()))


if __name__ == "__main__":
    main()
