"""The page's parts and what they are wired to. What happens is in `answering`, what is shown in `results`."""

from __future__ import annotations

import html
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr  # type: ignore[import-not-found]

from globalcom2.core.presets import PRESET_METHOD
from globalcom2.errors import GlobalCom2Error
from globalcom2.hf.loading import MINIS
from globalcom2.web import examples, results
from globalcom2.web.answering import NONE, Answering, method_choices
from globalcom2.web.uploads import picture_to_show

LOWEST_RATIO = 0.02
STYLE = Path(__file__).parent / "page.css"
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
"""Fonts that are there already: none is loaded."""
CHOSEN = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-example]');
  if (button) trigger('click', {number: Number(button.dataset.example)});
});
"""
TO_ANSWERS = "() => { document.getElementById('gc-results')?.scrollIntoView({behavior: 'smooth', block: 'start'}); }"
FITS = """() => window.addEventListener('message', (event) => {
  const height = Number(event.data?.keptHeight);
  if (!(height > 0 && height < 20000)) return;
  for (const frame of document.querySelectorAll('#gc-views iframe')) {
    if (frame.contentWindow === event.source) frame.style.height = height + 'px';
  }
})"""
RAW = {"api_visibility": "private", "preprocess": False}
"""No endpoint for programs, and a picture that reaches us as the uploaded file: `open_image` alone decodes it."""
log = logging.getLogger(__name__)


def build(answering: Answering, queue: int = 16) -> Any:
    """The page, ready to be launched with `look`.

    Args:
        answering: What answers, with its models and limits.
        queue: How many questions may wait; a further one is refused.

    Returns:
        gradio's Blocks.
    """
    name = answering.models.name
    with gr.Blocks(
        title="globalcom2: which tokens of a picture are needed?",
        analytics_enabled=False,
        delete_cache=(60, round(60 * answering.limits.minutes)),
        fill_width=True,
    ) as page:
        gr.HTML(_header(name), elem_id="gc-header", apply_default_css=False)
        with gr.Row(elem_id="gc-inputs"):
            with gr.Column(scale=1, min_width=300):
                picture = gr.Image(
                    label=f"Picture, up to {answering.limits.upload_mb:g} MB",
                    type="filepath", format="png", image_mode=None, sources=["upload", "clipboard"],
                    buttons=["fullscreen"], height=352, elem_id="gc-picture", alt_text="The picture of your question",
                )  # fmt: skip
            with gr.Column(scale=1, min_width=300):
                question = gr.Textbox(
                    label="Question", lines=2, max_lines=4, max_length=answering.limits.question, submit_btn=False,
                    placeholder=examples.EXAMPLES[0].question, elem_id="gc-question",
                )  # fmt: skip
                ratio = gr.Slider(
                    LOWEST_RATIO, 1.0, value=0.1, step=0.01, label="Retention ratio", elem_id="gc-ratio",
                    info="The fraction of the visual tokens to keep.",
                )  # fmt: skip
                with gr.Row():
                    first = _chooser("Method", method_choices(), PRESET_METHOD, "gc-first")
                    second = _chooser("Compare with", [("none", NONE), *method_choices()], "uniform", "gc-second")
                model = gr.Textbox(
                    value=name, label="Model: 'mini' or a name on the hub", visible=answering.models.open_to_others,
                    elem_id="gc-model",
                )  # fmt: skip
                button = gr.Button("Ask", variant="primary", size="lg", elem_id="gc-ask")
        strip = gr.HTML(examples.strip(), js_on_load=CHOSEN, elem_id="gc-strip", apply_default_css=False)
        with gr.Column(elem_id="gc-results"):
            summary = gr.HTML(results.placeholder(), elem_id="gc-summary", apply_default_css=False)
            views = gr.HTML("", elem_id="gc-views", apply_default_css=False)
        _wire(page, answering, (picture, question, ratio, first, second, model), (summary, views), button, strip)
    page.queue(max_size=queue, default_concurrency_limit=1, api_open=False)
    return page


def look() -> dict[str, Any]:
    """gradio's arguments for theme and style, for `launch`."""
    theme = gr.themes.Base(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=["ui-monospace", "monospace"],
        radius_size="md",
    ).set(
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700", button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white", button_primary_text_color_dark="white",
        slider_color="*primary_700", slider_color_dark="*primary_500",
    )  # fmt: skip
    return {"theme": theme, "css": STYLE.read_text()}


def _header(name: str) -> str:
    knows = (
        "It is small: it knows coloured tags with numbers and little bills, as in the examples, and no photographs."
        if name in MINIS
        else ""
    )
    return (
        "<header><h1>globalcom2</h1><p>Ask about a picture twice: with all visual tokens, and with the few that a method "
        f"keeps. The model here is <b>{html.escape(name)}</b>. {knows}</p></header>"
    )


def _chooser(label: str, choices: list[tuple[str, str]], value: str, name: str) -> Any:
    return gr.Dropdown(choices, value=value, label=label, elem_id=name, filterable=False, min_width=120)


def _wire(
    page: Any, answering: Answering, inputs: tuple[Any, ...], outputs: tuple[Any, ...], button: Any, strip: Any
) -> None:
    """Connect buttons to what they do."""
    picture, question, *_ = inputs

    def ask(
        file: Any,
        text: Any,
        ratio: Any,
        first: Any,
        second: Any,
        model: Any,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[str, str]:
        with _told():
            found = answering.ask(
                _path(file), text, ratio, [first, second], model, lambda share, what: progress(share, desc=what)
            )
            return results.summary(found), results.views(found)

    def uploaded(file: Any) -> Any:
        with _told():
            try:
                shown = picture_to_show(_path(file), answering.limits)
            except GlobalCom2Error as error:
                gr.Warning(_sentence(error), duration=None, title="This picture cannot be used")
                return None
            return gr.skip() if shown is None else shown

    def chosen(event: gr.EventData) -> tuple[Any, str]:
        with _told():
            one = examples.example(getattr(event, "number", None))
            return one.picture(), one.question

    asked = gr.on(
        [button.click, question.submit], ask, list(inputs), list(outputs), concurrency_limit=1, concurrency_id="model",
        show_progress="full", show_progress_on=outputs[0], **RAW,
    )  # fmt: skip
    asked.success(None, js=TO_ANSWERS)
    page.load(None, js=FITS)
    picture.upload(uploaded, picture, picture, concurrency_limit=2, show_progress="hidden", **RAW)
    strip.click(chosen, None, [picture, question], concurrency_limit=4, show_progress="hidden", **RAW)


def _path(file: Any) -> str | None:
    """Where an uploaded file lies; the gate has seen that this is in the folder of uploads."""
    path = file.get("path") if isinstance(file, dict) else None
    return path if isinstance(path, str) else None


def _sentence(error: Exception) -> str:
    """An error's text for the page, escaped, beginning as sentences do."""
    text = str(error)
    word = text.partition(" ")[0]
    return html.escape(word.capitalize() + text[len(word) :] if word.isalpha() and word.islower() else text)


@contextmanager
def _told() -> Iterator[None]:
    """Turn our errors into messages on the page, and all others into one that tells nothing of the server."""
    try:
        yield
    except GlobalCom2Error as error:
        message, title = _sentence(error), "This cannot be asked"
    except Exception:
        log.exception("the page could not do what was asked")
        message, title = (
            "Something failed on the server; its log says what. Try another picture or question.",
            "No answer",
        )
    else:
        return
    raise gr.Error(message, duration=None, title=title, print_exception=False)
