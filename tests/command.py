"""The command line, called in this process."""

import pytest

from globalcom2.cli import main


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `globalcom2 *arguments`."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    out, err = capsys.readouterr()
    return stop.value.code, out, err
