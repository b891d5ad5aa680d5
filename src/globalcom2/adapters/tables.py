"""The page docs/models.md: supported families, and others with the reason why not."""

from __future__ import annotations

from globalcom2.adapters.families import UNSUPPORTED, get_family, list_models, load_adapter
from globalcom2.adapters.family import Family

HEAD = """\
# Models

Made by `globalcom2 models --markdown`.

- **Checkpoint**: a name on the Hugging Face hub, as transformers or its owner gives it. No checkpoint was run for this
  project: none could be downloaded where it was developed.
- **vLLM**: whether [`globalcom2 serve`](serving.md) and the plugin compress the family.
- **Thumbnail**: where it stands among an image's views. Families of the second table have none:
  [a guide commands windows of the image's tokens](native.md).
- **Positions**: those of kept tokens. Families that number tokens by time, row and column (M-RoPE) keep the original
  ones. Others close the gaps by default.

Every family passes one matrix of tests with random weights (`tests/adapters/test_families.py` and `tests/hf`,
`test_native_*.py`): a ratio of 1 is bit-identical, kept tokens equal embeddings cut by hand, batches equal single rows, and
totals are exact whatever the content. Processors are the real ones; where these need torchvision, a part of them is
replaced, and the details say so. `llava_next` is tested with the trained mini model too.

With transformers 5.24.0 all families work but Llama 4, which fails there by itself. Other versions are on
[a page of their own](transformers-versions.md).
"""
DETAILS = (("scores", "Scores"), ("budget", "Budget"), ("tested", "Tested with"))


def markdown_tables() -> str:
    """The whole page, without a newline at its end."""
    families = [get_family(name) for name in list_models()]
    lines = [
        HEAD,
        "## Images cut into crops",
        "",
        "| model type | checkpoint | vLLM | thumbnail |",
        "|---|---|---|---|",
    ]
    lines += [
        _row(family, family.thumbnail.partition(",")[0].partition(";")[0]) for family in families if not native(family)
    ]
    lines += ["", "## Images that keep their resolution", ""]
    lines += ["| model type | checkpoint | vLLM | positions |", "|---|---|---|---|"]
    lines += [_row(family, _positions(family)) for family in families if native(family)]
    lines += ["", "## Not supported", "", "| model type | why |", "|---|---|"]
    lines += [f"| {name} | {why} |" for name, why in sorted(UNSUPPORTED.items()) if name not in list_models()]
    lines += [
        "",
        "Other families can come [from a package of your own](extending.md#a-model-family).",
        "",
        "## Details",
    ]
    return "\n".join([*lines, *map(_details, families)])


def native(family: Family) -> bool:
    """Whether a family's images keep their resolution: no thumbnail, and a guide that commands."""
    return family.thumbnail.startswith("none")


def _row(family: Family, last: str) -> str:
    names = "<br>".join(family.checkpoints) or "-"
    return f"| [{family.model_type}](#{family.model_type}) | {names} | {_yes(family.vllm)} | {last} |"


def _positions(family: Family) -> str:
    """What a family whose images keep their resolution takes as `positions`, its default first."""
    adapter = load_adapter(family.model_type)
    if adapter.three_dimensional:
        return "original"
    return "closed" if getattr(adapter, "closed_alone", None) else "closed, original"


def _details(family: Family) -> str:
    rows = [f"- {title}: {getattr(family, name)}." for name, title in DETAILS]
    return "\n".join([f"\n### {family.model_type}\n", f"- Thumbnail: {family.thumbnail}.", *rows])


def _yes(value: bool) -> str:
    return "yes" if value else "no"
