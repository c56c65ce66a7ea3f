"""The compute kernels, installed as ``fastrnn.kernels``.

Every backend module offers the same four functions, ``lstm_forward``, ``lstm_backward``,
``gru_forward`` and ``gru_backward``, on one layout of rows; ``reference`` defines them in eager
torch. Nothing here imports the rest of fastrnn.
"""

if __name__ == "kernels":
    raise ImportError(
        "this folder is fastrnn.kernels, not a top-level package (PyPI has another named kernels): "
        "run `pip install -e .` in the repository and import fastrnn.kernels"
    )
