"""The command line. Checks arguments before anything heavy is imported; `--json` prints one object on stdout."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from globalcom2._version import __version__
from globalcom2.cli import ask, costs, lists, measure, serve  # noqa: F401 - they register their commands
from globalcom2.cli.app import app, notes
from globalcom2.errors import DataError, GlobalCom2Error


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"globalcom2 {__version__}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 0, 2 for a wrong call, 1 for a failure."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    try:
        code = app(given, standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        notes.print("Stopped.")
        code = 130
    except Exception as error:
        if debug and not hasattr(error, "show"):
            raise
        code = _explain(error)
    raise SystemExit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> int:
    """Print one error on stderr; returns the exit code."""
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error found by typer itself
        error.show()
        return int(error.exit_code)
    if isinstance(error, GlobalCom2Error):
        print(f"Error: {error}", file=sys.stderr)
        return 1 if isinstance(error, DataError) else 2
    print(f"Error: {type(error).__name__}: {error}\nRun again with --debug for the traceback.", file=sys.stderr)
    return 1
