"""The compute kernels, installed as ``fastrnn.kernels``.

:mod:`~fastrnn.kernels.contract` says what a kernel module offers, and
:mod:`~fastrnn.kernels.reference` defines the numbers in eager torch. Nothing here imports the rest
of fastrnn.
"""

if __name__ == "kernels":
    raise ImportError(
        "this folder is fastrnn.kernels, not a top-level package (PyPI has another named kernels): "
        "run `pip install -e .` in the repository and import fastrnn.kernels"
    )
