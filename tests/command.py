"""The command line, in this process."""

import sys

import pytest

from fastrnn import cli


def run(*arguments: object) -> int:
    """Runs ``fastrnn`` with these arguments; its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fastrnn", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
    return int(exit.value.code or 0)
