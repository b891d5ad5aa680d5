"""The application that commands register with, and what they share."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(
    help="Visual-token compression for high-resolution vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
notes = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Attention = Annotated[str | None, typer.Option(help="eager, sdpa, flash_attention_2, ...", show_default=False)]


def measured_with(network: Any) -> dict[str, Any]:
    """The command, a model's number format, and the machine, for a result."""
    from globalcom2.lab.machine import machine  # noqa: PLC0415

    command = shlex.join(["globalcom2", *sys.argv[1:]])
    return {"command": command, "dtype": str(network.dtype).removeprefix("torch."), **machine(network.device)}
