"""The application that the commands stand in: one file per command, registered here in the order of `--help`."""

from __future__ import annotations

from typing import Annotated

import typer

from globalcom2._version import __version__
from globalcom2.cli.analyze import analyze
from globalcom2.cli.ask import ask
from globalcom2.cli.batch import batch
from globalcom2.cli.bench import bench
from globalcom2.cli.estimate import estimate
from globalcom2.cli.eval import evaluate
from globalcom2.cli.methods import methods
from globalcom2.cli.models import models
from globalcom2.cli.serve import serve
from globalcom2.cli.tune import tune
from globalcom2.cli.web import web

app = typer.Typer(
    help="Visual-token compression for high-resolution vision-language models.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
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


app.command()(ask)
app.command()(batch)
app.command("eval")(evaluate)
app.command()(tune)
app.command()(analyze)
app.command()(bench)
app.command()(estimate)
app.command()(models)
app.command()(methods)
# What serve does not know goes to `vllm serve`.
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
app.command()(web)
