"""Whether what a command asks for can fit into memory, before any of it is allocated."""

from __future__ import annotations

import os

from fastrnn.training.config import ConfigError


def check(needed: int, what: str, remedy: str) -> None:
    """Checks a lower bound of the memory that is needed against all that the machine has.

    Args:
        needed: bytes.
        what: needs them.
        remedy: what to do.

    Raises:
        ConfigError: the machine has less.
    """
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise ConfigError(
            f"there is not enough memory: {what} needs {needed / 2**30:,.1f} GiB or more, and this "
            f"machine has {there / 2**30:,.1f}: {remedy}"
        )
