"""The tables of what was measured on a GPU by `gpu.py`."""

from __future__ import annotations

from typing import Any


def selection(found: dict[str, Any]) -> str:
    """Milliseconds of a selection: called as it is, and as a CUDA graph; 5 % to 95 % of the calls in brackets."""
    rows = {
        (row["what"], row["preset"], row["batch_size"], row["how"]): row
        for row in found["rows"]
        if row["retention_ratio"] == 0.1
    }
    lines = ["| what is selected | preset | images | as it is, ms | as a CUDA graph, ms |", "|---|---|---|---|---|"]
    for what, preset, batch in dict.fromkeys(key[:3] for key in rows):
        cells = [_range(rows[what, preset, batch, how]) for how in ("plain", "graph")]
        lines.append(f"| {what} | {preset} | {batch} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _range(row: dict[str, Any]) -> str:
    return f"{row['ms_median']:.2f} ({row['ms_p5']:.2f} to {row['ms_p95']:.2f})"


def native(found: dict[str, Any]) -> str:
    """Time to first token of a native family at 7B geometry, by phase."""
    lines = [
        "| batch | ratio | guide | visual tokens | tower ms | selection ms | prefill ms | to first token ms | spread | speed-up "
        "| decode ms/token | peak GB |",
        "|---|" + "---|" * 11,
    ]
    for row in found["rows"]:
        phases = (row[f"{phase}_seconds"] * 1e3 for phase in ("tower", "selection", "prefill", "ttft"))
        cells = [f"{row['batch_size']}", f"{row['retention_ratio']:g}", row["guide"] or "-", f"{row['visual_tokens']}"]
        cells += [f"{milliseconds:.1f}" for milliseconds in phases]
        cells += [
            f"{row['ttft_seconds_spread']:.0%}",
            f"{row['speedup']:.2f}x",
            f"{row['decode_seconds_per_token'] * 1e3:.1f}",
        ]
        lines.append("| " + " | ".join([*cells, f"{row['peak_memory_bytes'] / 1e9:.1f}"]) + " |")
    return "\n".join(lines)
