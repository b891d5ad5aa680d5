"""Outcomes of an evaluation, kept on disk so that a stopped run goes on, and a longer one asks only what is new."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from globalcom2.errors import InputError
from globalcom2.lab.dataset import Example, fingerprint


@dataclass(frozen=True)
class Outcome:
    """How the questions of one example were answered in one setting; a line of the journal."""

    setting: str
    """`EvalSetting.name`."""
    picture: int
    """`Example.number`."""
    right: list[bool]
    """One entry per question."""
    visual_tokens: float
    """Per image; the mean over the language model's layers where tokens leave inside it."""
    seconds: float
    """Per image, as if this setting alone had been asked."""
    saved_seconds: float = 0.0
    """Of these, what was not spent since the tower remembered its last call."""
    selection_seconds: float | None = None
    """Per image, of its batch; None where nothing was selected."""
    first_token_seconds: float | None = None
    """Per image, of its batch: tower, selection, projection and prefill."""


class Journal:
    """Outcomes on disk, one line each, so that a stopped run goes on where it was.

    Args:
        path: The file; None keeps nothing.
        header: What the outcomes depend on besides their setting.

    Raises:
        InputError: The file belongs to another model or set.
    """

    def __init__(self, path: Path | None, header: dict[str, Any]):
        self.path = path
        self.found: dict[tuple[str, int], Outcome] = {}
        if path is None:
            return
        if not path.exists():
            path.write_text(json.dumps(header) + "\n")
            return
        text = path.read_text()
        lines = text.splitlines()
        if not lines or lines[0] != json.dumps(header):
            raise InputError(
                f"{str(path)!r} must belong to this model, set and version to be resumed, got another run's. Delete it, or "
                "choose another --out."
            )
        for line in lines[1:]:
            try:
                outcome = Outcome(**json.loads(line))
            except ValueError:  # the last line of a run that was killed while it wrote
                continue
            self.found[outcome.setting, outcome.picture] = outcome
        if not text.endswith("\n"):  # what is added must not grow onto a half-written line
            with path.open("a") as file:
                file.write("\n")

    def add(self, outcomes: list[Outcome]) -> None:
        """Keep outcomes, in memory and on disk."""
        self.found |= {(outcome.setting, outcome.picture): outcome for outcome in outcomes}
        if self.path is not None:
            with self.path.open("a") as file:
                file.writelines(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes)


def journal_header(model: Any, examples: list[Example], version: str) -> dict[str, Any]:
    """What outcomes depend on besides their setting: weights and how they compute, the set, our version."""
    digest = hashlib.sha256()
    for name, weights in model.named_parameters():
        few = weights.detach().flatten()[:: max(1, weights.numel() // 16)]  # enough to tell two trainings apart
        digest.update(f"{name} {weights.dtype} {few.double().tolist()}".encode())
    return {
        "weights": digest.hexdigest()[:16],
        "attention": str(model.config._attn_implementation),
        "set": fingerprint(examples),
        "globalcom2": version,
    }
