"""`globalcom2 serve`."""

from __future__ import annotations

import os
import shlex
from typing import Annotated

import typer

from globalcom2.cli.options import Retention, read_ratio
from globalcom2.cli.output import notes


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="'mini', a folder with a checkpoint, or a name on the hub.")],
    retention: Retention = None,
    floor: Annotated[
        float | None, typer.Option(help="Lowest ratio that a request gets. Default: --retention.", show_default=False)
    ] = None,
    method: Annotated[str, typer.Option(help="Selector, see `globalcom2 methods`.")] = "globalcom2",
    per_request: Annotated[
        bool,
        typer.Option(
            "--per-request",
            help="Let requests ask for a ratio: mm_processor_kwargs {'globalcom2_retention': 0.25}. "
            "They may then set the image processor's other arguments, too: for clients that you trust.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and stop.")] = False,
) -> None:
    """Serve a model with vLLM and shorter image prompts. Further flags go to `vllm serve`."""
    ratio = read_ratio(retention)
    from globalcom2.integrations.vllm.serving import command  # noqa: PLC0415

    made = command(model, ratio, floor, method, per_request, context.args)
    notes.print(f"Each image keeps {ratio:.4g} of its visual tokens, chosen by {method}.", highlight=False)
    if dry_run:
        typer.echo(shlex.join(made))
        return
    notes.print(shlex.join(made), highlight=False, soft_wrap=True)
    os.execv(made[0], made)
