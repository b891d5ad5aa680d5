"""The command line. Checks arguments before anything heavy is imported; `--json` prints one object on stdout.

One file per command, named after it. `app` registers them, `options` holds what several commands take, `output` what
several commands print, `pictures` where pictures come from. What a command does lives in the other wings.
"""

from __future__ import annotations

import json
import sys

import typer

from globalcom2.cli.app import app
from globalcom2.cli.output import notes
from globalcom2.errors import DataError, GlobalCom2Error

STOPPED = 130


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: with 0, with 2 for a wrong call, with 1 for a failure, with 130 when stopped.

    An error is a line on stderr. With `--json` it is one object on stdout, too: {"error": {type, message, exit_code}}.

    Args:
        arguments: The words after the program's name. Default: those of this process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    failure: tuple[int, str, str] | None = None
    try:
        code = app(given, standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except Exception as error:
        if debug and not hasattr(error, "show"):
            raise
        failure = _explain(error)
    if failure is None and code == STOPPED:  # typer itself turns an interruption into this code
        notes.print("Stopped.")
        failure = STOPPED, "KeyboardInterrupt", "Stopped."
    if failure is not None:
        code, kind, message = failure
        if "--json" in given:
            typer.echo(json.dumps({"error": {"type": kind, "message": message, "exit_code": code}}))
    raise SystemExit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> tuple[int, str, str]:
    """Print one error on stderr; returns the exit code, the error's type and its message."""
    kind, message = type(error).__name__, str(error)
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error found by typer itself
        error.show()
        return int(error.exit_code), kind, str(error.format_message()) if hasattr(error, "format_message") else message
    if isinstance(error, GlobalCom2Error):
        print(f"Error: {error}", file=sys.stderr)
        return (1 if isinstance(error, DataError) else 2), kind, message
    print(f"Error: {kind}: {error}\nRun again with --debug for the traceback.", file=sys.stderr)
    return 1, kind, message
