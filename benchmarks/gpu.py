"""Measures and tests what only a GPU can show, in one run of a few minutes: four parts, each with a time limit of its own.

python benchmarks/gpu.py --out FOLDER                  all parts: at most 7 minutes, about 45 GB of GPU memory
python benchmarks/gpu.py --out FOLDER --tiny           the same with small models: shows on a CPU that the script runs
python benchmarks/gpu.py --out FOLDER --only native    one part, or several: --only tests,selection

1. tests: tests/hf/test_cuda.py and tests/hf/test_syncs.py.
2. selection: `select` alone, plain and as a CUDA graph (`gpu_selection.py`).
3. bench: LLaVA-NeXT-7B's geometry, one 672 x 672 image, all tokens and a tenth, batches of 1 and 4, as `globalcom2 bench` does.
4. native: Qwen2.5-VL-7B's geometry, one 1344 x 896 image, all tokens and a tenth with both guides (`gpu_native.py`).

Each part is a process. It writes FOLDER/PART.json whenever it knows more, so a part that reaches its limit leaves what it had.
FOLDER/gpu.log has all output. Every result names the device and the versions.

The package need not be installed. Where a machine has PyTorch for its GPU but an older transformers and no network, bring the
wheel (13 MB) and put it in front:

    pip download --no-deps transformers==5.24.0 -d wheels
    pip install --no-index --no-deps --no-compile --target site wheels/*.whl
    PYTHONPATH=site python benchmarks/gpu.py --out FOLDER --commit "$(git describe --always --dirty)"
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {"tests": 170.0, "selection": 60.0, "bench": 100.0, "native": 110.0}
"""Parts in the order of their worth, with the most seconds each may take."""
TESTS = ("tests/hf/test_cuda.py", "tests/hf/test_syncs.py")


class Result:
    """A part's JSON file, written anew whenever more is known."""

    def __init__(self, args: argparse.Namespace, part: str):
        self.path = args.out / f"{part}.json"
        self.start = time.monotonic()
        self.known: dict[str, Any] = {"part": part, "tiny": args.tiny, "complete": False, **described(args.commit)}

    def add(self, **more: Any) -> None:
        """Write with these entries, too."""
        self.known |= {**more, "part_seconds": round(time.monotonic() - self.start, 1)}
        self.path.write_text(json.dumps(self.known))


def described(commit: str | None) -> dict[str, Any]:
    """Device, versions and date."""
    import torch  # noqa: PLC0415

    from globalcom2.lab.machine import machine  # noqa: PLC0415

    found = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    found["versions"] |= {"cuda": torch.version.cuda, "python": sys.version.split()[0]}
    return {**found, "commit": found["commit"] or commit}


class Outcomes:
    """A pytest plugin: every test's outcome and seconds, as they come."""

    def __init__(self, result: Result):
        self.result = result
        self.rows: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note a test's call, or what kept it from being called."""
        if report.when == "call" or report.outcome != "passed":
            row = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
            if report.outcome != "passed":
                row["why"] = str(report.longrepr)[-600:]
            self.rows.append(row)
            counts = {
                kind: sum(own["outcome"] == kind for own in self.rows) for kind in ("passed", "failed", "skipped")
            }
            self.result.add(**counts, rows=self.rows)


def tests(args: argparse.Namespace) -> None:
    """Run the tests that ask a GPU."""
    import pytest  # noqa: PLC0415

    result = Result(args, "tests")
    code = pytest.main([*TESTS, "-q", "-p", "no:cacheprovider", "--color=no"], plugins=[Outcomes(result)])
    result.add(complete=True, exit_code=int(code))


def selection(args: argparse.Namespace) -> None:
    """Time `select` alone."""
    import gpu_selection  # noqa: PLC0415

    result = Result(args, "selection")
    rows: list[dict[str, Any]] = []
    for more in gpu_selection.rows(args.tiny):
        rows += more
        result.add(runs=gpu_selection.runs(args.tiny), rows=rows)
    result.add(complete=True)


def bench(args: argparse.Namespace) -> None:
    """Time whole calls at 7B geometry, as `globalcom2 bench` does; keys are those of its JSON."""
    from globalcom2.hf.loading import random_model  # noqa: PLC0415
    from globalcom2.lab import bench as lab  # noqa: PLC0415
    from globalcom2.lab.estimates import named_configs  # noqa: PLC0415

    name = "llava-next-86m" if args.tiny else "llava-next-7b"
    config, plan = named_configs()[name], lab.Plan((672, 672), 40, 32, 5)
    if args.tiny:
        config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers = 2, 3
        name, plan = f"{name}, tiny", lab.Plan((336, 336), 40, 2, 1)
    result = Result(args, "bench")
    model = random_model(config)
    result.add(
        model=name,
        weights="random",
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        attn=model.config._attn_implementation,
        image=f"{plan.image[0]}x{plan.image[1]}",
        rounds=plan.rounds,
        new_tokens=plan.new_tokens,
        text_tokens=plan.text_tokens,
    )
    rows: list[dict[str, Any]] = []
    for batch in (1, 4):
        rows += lab.measure(model, lab.settings_of(["globalcom2"], [0.1], [batch]), plan)
        result.add(rows=rows)
    result.add(complete=True)


def native(args: argparse.Namespace) -> None:
    """Time whole calls of a native family at 7B geometry."""
    import gpu_native  # noqa: PLC0415

    result = Result(args, "native")
    model = gpu_native.model(args.tiny)
    plan = gpu_native.plan(args.tiny)
    result.add(**gpu_native.told(model, plan))
    rows: list[dict[str, Any]] = []
    for kernel in gpu_native.KERNELS:
        result.add(**gpu_native.use(model, plan, kernel))
        for batch in (1, 4):
            rows += [{"tower_attention": kernel, **row} for row in gpu_native.measure(model, plan, batch)]
            result.add(rows=rows)
    result.add(complete=True)


PARTS = {"tests": tests, "selection": selection, "bench": bench, "native": native}


def run(part: str, args: argparse.Namespace, seconds: float) -> str:
    """Run a part as a process of its own; it and all that it started are ended at the limit. Returns how it went."""
    command = [sys.executable, __file__, "--part", part, "--out", str(args.out), *(["--tiny"] if args.tiny else [])]
    command += ["--commit", args.commit] if args.commit else []
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    start = time.monotonic()
    with (args.out / "gpu.log").open("a") as log:
        print(f"\n== {part}", file=log, flush=True)
        process = subprocess.Popen(command, cwd=ROOT, env=own, stdout=log, stderr=log, start_new_session=True)
        try:
            how = f"exit code {process.wait(seconds)}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            how = f"ended at its limit of {seconds:.0f} s"
    return f"{how}, {time.monotonic() - start:.0f} s"


def summary(path: Path) -> str:
    """A part's result in a few short lines."""
    if not path.exists():
        return "  no result: see gpu.log"
    found = json.loads(path.read_text())
    versions, rows = found["versions"], found.get("rows", [])
    lines = [f"  {found['hardware']}, torch {versions['torch']}, transformers {versions['transformers']}"]
    if found["part"] == "tests":
        lines.append("  " + ", ".join(f"{found.get(kind, 0)} {kind}" for kind in ("passed", "failed", "skipped")))
        lines += [f"  {row['outcome']} {row['test']}" for row in rows if row["outcome"] == "failed"]
    elif found["part"] == "selection":
        lines += _ways(rows)
    else:
        lines += [f"  {_short(row)}" for row in rows]
    return "\n".join(lines)


def _ways(rows: list[dict[str, Any]]) -> list[str]:
    """One line per selection, with the median milliseconds of each way of running it."""
    found: dict[str, list[str]] = {}
    for row in rows:
        name = f"{row['what']}, {row['preset']}, ratio {row['retention_ratio']:g}, batch {row['batch_size']}"
        figure = f"{row['ms_median']:.2f} ms ({row['spread']:.0%})" if "ms_median" in row else row["error"][:40]
        found.setdefault(name, []).append(f"{row['how']} {figure}")
    return [f"  {name}: {', '.join(own)}" for name, own in found.items()]


def _short(row: dict[str, Any]) -> str:
    """A row of whole calls: times in ms, memory in GB."""
    names = [str(row[key]) for key in ("tower_attention", "method", "guide") if row.get(key)]
    names += [f"ratio {row['retention_ratio']:g}", f"batch {row['batch_size']}", f"{row['visual_tokens']} tokens:"]
    phases = ("ttft", "tower", "selection", "projection", "prefill", "decode")
    found = [(row.get(f"{phase}_seconds", row.get(f"{phase}_seconds_per_token")), phase) for phase in phases]
    times = [f"{phase} {'-' if seconds is None else f'{1e3 * seconds:.1f}'}" for seconds, phase in found]
    spread = row.get("ttft_spread", row.get("ttft_seconds_spread"))
    memory = "-" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 1e9:.1f}"
    return " ".join([*names, *times, f"spread {spread:.0%}", f"{row['speedup']:.2f}x", f"{memory} GB"])


def main() -> None:
    """Run the parts, one after the other, and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--tiny", action="store_true", help="small models and few rounds, for a CPU")
    parser.add_argument("--only", default=",".join(LIMITS), help="parts, separated by commas")
    parser.add_argument("--minutes", type=float, default=7.0, help="most minutes of all parts together")
    parser.add_argument("--commit", help="the commit that is measured, where the folder has no git repository")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part:
        PARTS[args.part](args)
        return
    end = time.monotonic() + 60 * args.minutes
    for part in args.only.split(","):
        left = min(LIMITS[part] * (3 if args.tiny else 1), end - time.monotonic())
        how = run(part, args, left) if left > 5 else "not started: no time left"
        print(f"== {part}: {how}\n{summary(args.out / f'{part}.json')}", flush=True)


if __name__ == "__main__":
    main()
