"""What fastrnn finds on this machine."""

from __future__ import annotations

from typing import Any

import torch

from fastrnn import backends, patching


def backend_info() -> dict[str, Any]:
    """What fastrnn finds on this machine, as plain values that can be written as JSON.

    Returns:
        Versions, threads, the forced backend, whether torch is ``patched``, and ``backends``. That
        maps each backend's name to whether it is ``available``, the ``reason`` if it is not, and
        further facts.
    """
    found = {}
    for record in backends.BACKENDS.values():
        error = record.load_error()
        found[record.name] = {
            "available": error is None,
            **({"reason": error} if error else {}),
            **record.facts(),
        }
    return {
        "fastrnn": backends.fastrnn_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "forced": backends.forced_backend(),
        "patched": patching.is_patched(),
        "backends": found,
    }
