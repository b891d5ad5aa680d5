"""The page docs/models.md: supported families, and others with the reason why not."""

from __future__ import annotations

from globalcom2.adapters.families import UNSUPPORTED, get_family, list_models
from globalcom2.adapters.family import Family

HEAD = """\
# Models

Made by `globalcom2 models --markdown`.

- **Checkpoint**: a name on the Hugging Face hub, as transformers or its owner gives it. No checkpoint was run for this
  project: none could be downloaded where it was developed.
- **vLLM**: whether [`globalcom2 serve`](serving.md) and the plugin compress the family.
- **Thumbnail**: where it stands among an image's views.

Every family passes one matrix of tests with random weights (`tests/adapters/test_families.py`): a ratio of 1 is
bit-identical, kept tokens equal embeddings cut by hand, batches equal single rows, and totals are exact whatever the
content. Processors are the real ones; where these need torchvision, a part of them is replaced, and the details say so.
`llava_next` is tested with the trained mini model too.

With transformers 5.24.0 all families work but Llama 4, which fails there by itself. Other versions are on
[a page of their own](transformers-versions.md).
"""
DETAILS = (("scores", "Scores"), ("budget", "Budget"), ("tested", "Tested with"))


def markdown_tables() -> str:
    """The whole page, without a newline at its end."""
    families = [get_family(name) for name in list_models()]
    lines = [HEAD, "| model type | checkpoint | vLLM | thumbnail |", "|---|---|---|---|"]
    for family in families:
        names = "<br>".join(family.checkpoints) or "-"
        place = family.thumbnail.partition(",")[0].partition(";")[0]
        lines.append(f"| [{family.model_type}](#{family.model_type}) | {names} | {_yes(family.vllm)} | {place} |")
    lines += ["", "## Not supported", "", "| model type | why |", "|---|---|"]
    lines += [f"| {name} | {why} |" for name, why in sorted(UNSUPPORTED.items()) if name not in list_models()]
    lines += [
        "",
        "Other families can come [from a package of your own](extending.md#a-model-family).",
        "",
        "## Details",
    ]
    return "\n".join([*lines, *map(_details, families)])


def _details(family: Family) -> str:
    rows = [f"- {title}: {getattr(family, name)}." for name, title in DETAILS]
    return "\n".join([f"\n### {family.model_type}\n", f"- Thumbnail: {family.thumbnail}.", *rows])


def _yes(value: bool) -> str:
    return "yes" if value else "no"
