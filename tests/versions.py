"""Runs the suite with several versions of transformers: python tests/versions.py [VERSION ...], or --render alone.

Each version goes into a folder of its own, without dependencies, that stands before the environment's on PYTHONPATH. The
suite runs on a clean copy of the last commit. Beside it stand probes of the tiny models without compression: what fails in
them is wrong in that version whoever uses it. Writes benchmarks/results/transformers-versions.json, and
docs/transformers-versions.md from it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

PROJECT = Path(__file__).resolve().parents[1]
RESULT = PROJECT / "benchmarks/results/transformers-versions.json"
PAGE = PROJECT / "docs/transformers-versions.md"
VERSIONS = ("5.18.*", "5.20.*", "5.22.*", "5.24.*")
LEFT_OUT = ("engine", "train", "web", "lmms")  # tiers with environments of their own
PROBES = {
    "runs": "an image and a question are answered",
    "batch": "a padded batch answers as each row alone",
    "chunked": "chunked prefill answers as a whole one",
    "packed": "samples packed into a row answer as each alone",
    "continued": "a cache that is continued answers as the whole conversation",
}


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--probe"]:
        print(json.dumps(tried()))
        return
    if arguments != ["--render"]:
        measure(arguments or list(VERSIONS))
    PAGE.write_text(page(json.loads(RESULT.read_text())))


def measure(versions: list[str]) -> None:
    """Run suite and probes for each version, and write the result."""
    start = origin()
    with tempfile.TemporaryDirectory() as name:
        copy, record = Path(name) / "copy", []
        copy.mkdir()
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=PROJECT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", copy], input=archive, check=True)
        for version in versions:
            folder = Path(name) / version.replace("*", "x")
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*pip, "--target", folder, f"transformers=={version}"], check=True)
            environment = {
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "PYTHONPATH": os.pathsep.join(map(str, (folder, copy / "src", copy / "tests"))),
            }
            found = {"transformers": release(folder), "probes": probes(environment), **suite(copy, environment, name)}
            print(json.dumps({key: value for key, value in found.items() if key != "probes"}), file=sys.stderr)
            record.append(found)
            RESULT.write_text(json.dumps({**start, "rows": record}, indent=1) + "\n")  # a stop leaves what is done


def release(folder: Path) -> str:
    """The version of transformers in a folder."""
    (distribution,) = folder.glob("transformers-*.dist-info")
    return distribution.name.removeprefix("transformers-").removesuffix(".dist-info")


def origin() -> dict[str, object]:
    """Command, commit, versions, hardware and date."""
    from importlib.metadata import version

    from globalcom2.lab.machine import processor_name

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    names = ("torch", "tokenizers", "huggingface_hub", "accelerate", "peft", "pytest")
    return {
        "command": "python tests/versions.py",
        "commit": commit.stdout.strip(),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in names}},
        "hardware": f"{processor_name()}, {os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
    }


def suite(copy: Path, environment: dict[str, str], scratch: str) -> dict[str, object]:
    """Counts of the suite, and the names of what failed with the last line of the reason."""
    report = Path(scratch) / "report.xml"
    ignored = [f"--ignore={copy / 'tests' / tier}" for tier in LEFT_OUT]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "2",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        *ignored,
    ]
    started = time.monotonic()
    subprocess.run([*command, copy / "tests"], cwd=copy, env=environment, stdout=subprocess.DEVNULL, check=False)
    root = next(ElementTree.parse(report).getroot().iter("testsuite"))
    total, failed, errors, skipped = (int(root.get(name, 0)) for name in ("tests", "failures", "errors", "skipped"))
    reasons = {}
    for case in root.iter("testcase"):
        for kind in ("failure", "error"):
            if (found := case.find(kind)) is not None:
                name = f"{case.get('classname', '').replace('.', '/')}::{case.get('name')}"
                reasons[name] = (found.get("message") or "").splitlines()[0][:200] if found.get("message") else ""
    return {
        "passed": total - failed - errors - skipped,
        "failed": failed + errors,
        "skipped": skipped,
        "seconds": round(time.monotonic() - started),
        "failures": reasons,
    }


def probes(environment: dict[str, str]) -> dict[str, dict[str, str]]:
    """What the plain tiny models do, by family and probe: "right", "wrong" or an error."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__)), "--probe"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"the tiny models cannot be tried: {ran.stderr[-500:]}")
    return json.loads(ran.stdout.splitlines()[-1])


def tried() -> dict[str, dict[str, str]]:
    """All probes of all families in this version, without compression."""
    import torch

    from families import FAMILIES

    torch.set_num_threads(1)
    return {family: answers(make) for family, make in FAMILIES.items()}


def answers(make: Callable[[], Any]) -> dict[str, str]:
    """All probes of one family."""
    import torch

    outcome: dict[str, str] = {}
    tiny = None
    for name, ask in {
        "runs": runs,
        "batch": batch,
        "chunked": chunked,
        "packed": packed,
        "continued": continued,
    }.items():
        try:
            tiny = tiny or make()
            with torch.no_grad():
                outcome[name] = "right" if ask(tiny) else "wrong"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also pytest's, of a family that is skipped in this version
            outcome[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]
            if name == "runs":
                break
    return outcome


def prompts(tiny, rows=(0, 1)):
    from tiny import picture

    texts, sizes = ("a TAG b", "look at this TAG, please"), ((168, 168), (60, 200))
    chosen = [texts[row].replace("TAG", tiny.tag) for row in rows]
    return dict(tiny.inputs(chosen, [picture(*sizes[row], row) for row in rows]))


def answer(tiny, inputs, **more):
    out = tiny.model.generate(**inputs, max_new_tokens=6, do_sample=False, **more)
    return out[:, inputs["input_ids"].shape[1] :]


def runs(tiny):
    return answer(tiny, prompts(tiny, (0,))).shape[1] == 6


def batch(tiny):
    import torch

    both = answer(tiny, prompts(tiny))
    return torch.equal(both, torch.cat([answer(tiny, prompts(tiny, (row,))) for row in (0, 1)]))


def chunked(tiny):
    import torch

    inputs = prompts(tiny, (0,))
    return torch.equal(answer(tiny, inputs), answer(tiny, inputs, prefill_chunk_size=16))


def packed(tiny):
    """Two prompts of text in one row, positions restarting."""
    import torch

    ids = [torch.arange(30, 30 + length)[None] for length in (10, 16)]
    places = torch.cat([torch.arange(each.shape[1]) for each in ids])[None]
    row = tiny.model(input_ids=torch.cat(ids, 1), position_ids=places, use_cache=False).logits
    alone = torch.cat([tiny.model(input_ids=each, use_cache=False).logits for each in ids], 1)
    return torch.allclose(row, alone, atol=1e-3)


def continued(tiny):
    import torch

    inputs = prompts(tiny, (0,))
    first = tiny.model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    cache = getattr(first, "cache", None)
    cache = first.past_key_values if cache is None else cache
    ids = torch.cat([first.sequences, torch.arange(30, 38)[None]], 1)
    mask, settings = torch.ones_like(ids), {"max_new_tokens": 4, "do_sample": False}
    ours = tiny.model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, **settings)
    pixels = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in pixels:
            pixels[name] = torch.nn.functional.pad(pixels[name], (0, ids.shape[1] - pixels[name].shape[1]))
    return torch.equal(ours, tiny.model.generate(input_ids=ids, attention_mask=mask, **pixels, **settings))


def page(record: dict) -> str:
    """The docs page."""
    rows = record["rows"]
    lines = [
        "# Versions of transformers",
        "",
        f"The test suite, without the tiers that have environments of their own, with {len(rows)} versions of transformers "
        f"([result](../benchmarks/results/{RESULT.name}): commit {record['commit']}, torch {record['versions']['torch']}, "
        f"{record['hardware']}, {record['date']}). Made by `{record['command']}`.",
        "",
        "| transformers | passed | failed | skipped |",
        "|---|---|---|---|",
        *(f"| {row['transformers']} | {row['passed']} | {row['failed']} | {row['skipped']} |" for row in rows),
        "",
        "## Wrong without compression",
        "",
        "Each family's tiny model was tried with random weights and without compression:",
        "",
        *(f"- {name}: {what}." for name, what in PROBES.items()),
        "",
        "What failed is wrong in the version itself, whoever uses it.",
        "",
        *(line for row in rows for line in (f"**{row['transformers']}**", "", *(wrong(row) or ["- nothing"]), "")),
        "## Failed tests",
        "",
        "Most fail for the reasons above. In 5.18.0, operation counts differ by its rotary embedding.",
        "",
    ]
    if not any(row["failures"] for row in rows):
        return "\n".join([*lines, "None.", ""])
    for row in rows:
        for reason, names in grouped(row["failures"]):
            lines.append(f"- {row['transformers']}, {len(names)} tests, such as `{names[0].removeprefix('tests/')}`:")
            lines.append(f"  `{reason}`")
    return "\n".join([*lines, ""])


def grouped(failures: dict[str, str]) -> list[tuple[str, list[str]]]:
    """Reasons that differ in numbers alone are one; most tests first."""
    found: dict[str, tuple[str, list[str]]] = {}
    for name, reason in failures.items():
        found.setdefault(re.sub(r"[\d.e+-]+", "0", reason), (reason, []))[1].append(name)
    return sorted(found.values(), key=lambda group: -len(group[1]))


def wrong(row: dict) -> list[str]:
    """A line for each thing that the probes found, families with the same outcome together."""
    found: dict[tuple[str, str], list[str]] = {}
    for family, outcome in row["probes"].items():
        for name, answer_ in outcome.items():
            if answer_ != "right":
                found.setdefault((name, answer_), []).append(family)
    lines = []
    for (name, outcome), families in found.items():
        who = "all families" if len(families) == len(row["probes"]) else ", ".join(families)
        lines.append(f"- {name}: {'wrong answers' if outcome == 'wrong' else f'`{outcome}`'}, in {who}")
    return lines


if __name__ == "__main__":
    main(sys.argv[1:])
