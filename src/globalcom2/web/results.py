"""What the page shows of an answered question, as HTML. Every text is escaped: it comes from visitors and models."""

from __future__ import annotations

import html

from globalcom2.drawing.page import in_frame
from globalcom2.lab.comparison import Answer, Comparison
from globalcom2.lab.labels import FULL, percent
from globalcom2.lab.sheets import draw_page
from globalcom2.web.examples import right_answer

COLUMNS = ("", "Answer", "Visual tokens", "Prefill", "Seconds")
TERA, GIGA = 1e12, 1e9
GROWS = """<style>
.g2 { min-height: 0 !important; padding: .75rem 1rem 1rem !important; }
.g2 .cards { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)) !important; }
.g2 .stage { width: 100% !important; }
.g2 figure.crops { max-width: 44rem !important; }
.g2 figure.thumbnail { flex: 0 1 15rem !important; }
</style>
<script>
const kept = document.querySelector(".g2");
const tell = () => parent.postMessage({keptHeight: Math.ceil(kept.getBoundingClientRect().height) + 2}, "*");
new ResizeObserver(tell).observe(kept);
</script>"""
"""Added to the page in the frame: it tells its height, so that there is one scroll bar and not two."""


def placeholder() -> str:
    """What stands in the place of results before the first question."""
    return (
        '<div class="gc-empty"><strong>Answers will stand here.</strong> The question is answered with all visual tokens '
        "and with a part of them. Below the answers you will see which tokens each method kept.</div>"
    )


def summary(found: Comparison) -> str:
    """The answers beside each other, with what they cost; for an example, the right one too."""
    full, unit = found.full, _unit(found.full)
    rows = [
        _row(FULL, "", full, full, unit),
        *(_row(run.label, run.budget, run, full, unit) for run in found.runs),
    ]
    heads = "".join(f'<th scope="col" role="columnheader">{column}</th>' for column in COLUMNS)
    return (
        f'<section class="gc-summary" aria-label="Answers"><h2>{html.escape(found.question)}</h2>'
        f'<table role="table"><thead role="rowgroup"><tr role="row">{heads}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(rows)}</tbody></table>'
        f"<p>{_judged(found)} Prefill: operations of the language model on the prompt. Seconds: the whole answer on this "
        "server, vision tower included.</p></section>"
    )


def _judged(found: Comparison) -> str:
    right = right_answer(found.image, found.question)
    known = "" if right is None else f"The right answer is <strong>{html.escape(right)}</strong>. "
    if any(run.answer != found.full.answer for run in found.runs):
        return known + "An underlined answer differs from that of all tokens."
    return known or "All answers are the same. That does not make them right."


def _row(name: str, ratio: str, answer: Answer, full: Answer, unit: tuple[float, str]) -> str:
    changed = answer.answer != full.answer
    tokens = f"{answer.visual_tokens:,}"
    prefill = "-"
    if answer.prefill_flops is not None:
        prefill = f"{answer.prefill_flops / unit[0]:,.2f} {unit[1]}"
    if answer is not full:
        tokens += _share(answer.visual_tokens, full.visual_tokens)
        prefill += _share(answer.prefill_flops, full.prefill_flops)
    said = html.escape(answer.answer) or "<em>no answer</em>"
    head = html.escape(name) + (f" <small>ratio {ratio}</small>" if ratio else "")
    cells = (
        f'<span class="gc-answer{" gc-changed" if changed else ""}">{said}</span>',
        tokens,
        prefill,
        f"{answer.seconds:.2f}",
    )
    row = "".join(
        f'<td role="cell" data-label="{column}">{cell}</td>' for column, cell in zip(COLUMNS[1:], cells, strict=True)
    )
    return f'<tr role="row"><th scope="row" role="rowheader">{head}</th>{row}</tr>'


def _share(part: int | None, whole: int | None) -> str:
    return f" <small>({percent(part / whole)})</small>" if part is not None and whole else ""


def _unit(full: Answer) -> tuple[float, str]:
    return (TERA, "TFLOPs") if (full.prefill_flops or 0) >= TERA else (GIGA, "GFLOPs")


def views(found: Comparison) -> str:
    """What each setting kept, beside each other in one frame, so that one box shows or hides a layer in all of them."""
    runs = [run for run in found.runs if run.entry is not None]
    if not runs:
        return '<div class="gc-empty">Nothing was dropped, so there is nothing to show.</div>'
    page = draw_page(
        found.image,
        [run.entry for run in runs if run.entry is not None],
        names=[f"{run.label}, ratio {run.budget}" for run in runs],
        answers=[run.answer or "none" for run in runs],
    )
    return in_frame(page.replace("</body>", f"{GROWS}</body>"), 720)
