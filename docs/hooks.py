"""What mkdocs does beyond its own: the reference of the command line, a page that shows what was kept, and links to files
of the repository.

Pages link to the repository's files as `../benchmarks/results/x.json`, so that the links work where the pages are read as
they are. The site has no files but its own, so those that are linked to are copied into it, below `repository/`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from typer.main import get_command

from globalcom2.cli.app import app

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)(#[^)\s]*)?(?=\))")
COMMANDS = "<!-- commands -->"
KEPT = "<!-- kept page -->"
FRAME = (
    '<iframe src="kept.html" title="What was kept, to look at" loading="lazy" '
    'style="width:100%;height:46rem;border:1px solid var(--md-default-fg-color--lightest)"></iframe>'
)
SHOWN = (".json", ".jsonl", ".txt", ".png", ".ipynb", ".csv")
"""Files that keep their names. All others get `.txt`, so that a browser shows them and mkdocs makes no page of them."""


def on_files(files: Files, config: Any) -> Files:
    """Add the repository's files that pages link to, and the page that shows what was kept."""
    for page in files.documentation_pages():
        text = Path(page.abs_src_path).read_text()
        if KEPT in text:
            files.append(File.generated(config, "kept.html", content=kept_page()))
        for target in _linked(text, page.src_uri):
            if files.get_file_from_path(_place(target)) is None:
                files.append(File.generated(config, _place(target), abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the commands, and point links to the repository at the copies."""
    here = posixpath.dirname(page.file.src_uri)

    def pointed(found: re.Match[str]) -> str:
        return posixpath.relpath(_place(_resolved(found[1], page.file.src_uri)), here or ".")

    # Lines of a file have no place in its copy, so what follows `#` goes.
    return LINK.sub(pointed, markdown).replace(COMMANDS, command_reference()).replace(KEPT, FRAME)


def _linked(markdown: str, page: str) -> Iterator[str]:
    return (_resolved(found[1], page) for found in LINK.finditer(markdown))


def _resolved(link: str, page: str) -> str:
    """The file that a page links to, from the repository's root."""
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    if not (ROOT / target).is_file():
        raise PluginError(f"docs/{page} links to {link}, which is no file of the repository.")
    return target


def _place(target: str) -> str:
    return f"repository/{target}" + ("" if target.endswith(SHOWN) else ".txt")


def command_reference() -> str:
    """Every command with its arguments and options, as Markdown, from the application itself."""
    parts = []
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        context = command.context_class(command, info_name=f"globalcom2 {name}")
        usage = command.get_usage(context).removeprefix("Usage: ")
        parts += [f"## {name}", command.help or "", f"```text\n{usage}\n```", "| | meaning |\n|---|---|"]
        records = (parameter.get_help_record(context) for parameter in command.params)
        parts[-1] += "".join(f"\n| `{left}` | {_cell(right)} |" for left, right in filter(None, records))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def kept_page() -> str:
    """What `globalcom2` keeps of the demo's picture at two ratios, as a page of HTML."""
    # torch and transformers are for this page alone.
    from globalcom2 import compress, draw_page, load_mini  # noqa: PLC0415
    from globalcom2.mini import DEMO_QUESTION, demo_picture  # noqa: PLC0415

    model, processor = load_mini()
    picture, ratios = demo_picture(), (0.25, 0.1)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": DEMO_QUESTION}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(text=prompt, images=picture, return_tensors="pt")
    entries, answers = [], []
    for ratio in ratios:
        with compress(model, ratio) as compression:
            out = model.generate(**inputs, max_new_tokens=8)
        entries.append(compression.report[0])
        answers.append(processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    names = [f"globalcom2, {ratio:g}" for ratio in ratios]
    page: str = draw_page(picture, entries, title=DEMO_QUESTION, names=names, answers=answers)
    return page
