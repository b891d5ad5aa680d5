"""The application that the commands stand in: one file per command, registered here in the order of `--help`."""

from __future__ import annotations

from typing import Annotated

import typer

from globalcom2._version import __version__
from globalcom2.cli import analyze, ask, bench, estimate, eval, methods, models, serve

app = typer.Typer(
    help="Visual-token compression for high-resolution vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"globalcom2 {__version__}")
        raise typer.Exit


app.command()(ask.ask)
app.command("eval")(eval.evaluate)
app.command()(analyze.analyze)
app.command()(bench.bench)
app.command()(estimate.estimate)
app.command()(models.models)
app.command()(methods.methods)
# What serve does not know goes to `vllm serve`.
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve.serve)
