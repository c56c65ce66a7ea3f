"""One engine in a process of its own, for benchmarks.engines: ``engine_worker.py ENGINE THREADS``.

It answers each line of standard input with a line of JSON, and first says whether the engine could
be loaded. ``problem FILE`` is answered by the relative error of the results, ``time SECONDS`` by
the median seconds of a call, and either by why it failed.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

Call = Callable[[], Sequence[Any]]  # returns y, h_n and, of an LSTM, c_n


class Problem:
    """A layer with its weights, input, initial states, and exact results.

    Attributes:
        cell: LSTM or GRU.
        arrays: weights by torch.nn's names; x [T, B, I]; states h0 and c0 [1, B, H]; the results
            y, h_n and c_n in float64. A GRU has no c0 and c_n.
        threads: that a call may use.
    """

    def __init__(self, cell: str, arrays: dict[str, Any], threads: int) -> None:
        self.cell, self.arrays, self.threads = cell, arrays, threads
        self.names = ("h0", "c0") if cell == "LSTM" else ("h0",)

    def layer(self, library: Any = nn) -> Any:
        """The layer of torch.nn or fastrnn, in eval mode."""
        hidden, inputs = self.arrays["w_hh"].shape[1], self.arrays["w_ih"].shape[1]
        made = getattr(library, self.cell)(inputs, hidden)
        names = {"weight_ih_l0": "w_ih", "weight_hh_l0": "w_hh", "bias_ih_l0": "b_ih"}
        names["bias_hh_l0"] = "b_hh"
        made.load_state_dict({to: torch.from_numpy(self.arrays[n]) for to, n in names.items()})
        return made.eval()

    def call_of(self, layer: Any) -> Call:
        """A call of a layer of torch or fastrnn."""
        x, *states = (torch.from_numpy(self.arrays[name]) for name in ("x", *self.names))
        given = tuple(states) if len(states) == 2 else states[0]

        def call() -> Sequence[Any]:
            y, final = layer(x, given)
            return (y, *final) if isinstance(final, tuple) else (y, final)

        return call

    def onnx(self) -> bytes:
        """The layer as an ONNX model."""
        inputs = [torch.from_numpy(self.arrays[name]) for name in ("x", *self.names)]
        states = tuple(inputs[1:]) if len(inputs) == 3 else inputs[1]
        file: Any = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = ["x", *self.names]
            torch.onnx.export(
                self.layer(), (inputs[0], states), file, input_names=names, dynamo=False
            )
        return bytes(file.getvalue())

    def error(self, results: Sequence[Any]) -> float:
        """The largest relative error of a result."""
        expected = [self.arrays[n] for n in ("y", "h_n", "c_n")[: 1 + len(self.names)]]
        return max(
            float(np.linalg.norm(np.asarray(got) - want) / np.linalg.norm(want))
            for got, want in zip(results, expected, strict=True)
        )


def run_torch(problem: Problem) -> Call:
    """torch.nn's layer."""
    return problem.call_of(problem.layer())


def run_compiled(problem: Problem) -> Call:
    """torch.compile of torch.nn's layer."""
    torch.compiler.reset()
    return problem.call_of(torch.compile(problem.layer()))


def run_fastrnn(problem: Problem) -> Call:
    """Fastrnn's layer."""
    return problem.call_of(problem.layer(importlib.import_module("fastrnn")))


def run_frozen(problem: Problem) -> Call:
    """Fastrnn's layer, frozen."""
    fastrnn = importlib.import_module("fastrnn")
    return problem.call_of(fastrnn.freeze(problem.layer(fastrnn)))


def run_onnxruntime(problem: Problem) -> Call:
    """Onnxruntime on its CPU provider."""
    engine = importlib.import_module("onnxruntime")
    options = engine.SessionOptions()
    options.intra_op_num_threads = problem.threads
    session = engine.InferenceSession(problem.onnx(), options, providers=["CPUExecutionProvider"])
    feeds = {name: problem.arrays[name] for name in ("x", *problem.names)}
    return lambda: session.run(None, feeds)


def run_openvino(problem: Problem) -> Call:
    """OpenVINO on the CPU, for the least latency."""
    engine = importlib.import_module("openvino")
    settings = {
        "INFERENCE_NUM_THREADS": problem.threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = engine.Core()
    request = core.compile_model(
        core.read_model(problem.onnx(), b""), "CPU", settings
    ).create_infer_request()
    feeds = {name: problem.arrays[name] for name in ("x", *problem.names)}

    def call() -> Sequence[Any]:
        results = request.infer(feeds, share_inputs=True, share_outputs=True)
        return [results[i] for i in range(len(feeds))]

    return call


def run_jax(problem: Problem) -> Call:
    """jax.lax.scan over the steps, with the input's product in front."""
    jax = importlib.import_module("jax")
    jnp, sigmoid = jax.numpy, jax.nn.sigmoid

    def lstm(x: Any, h: Any, c: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
        def step(state: Any, projected: Any) -> Any:
            h, c = state
            i, f, g, o = jnp.split(projected + h @ w_hh.T, 4, axis=-1)
            c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
            h = sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        (h, c), y = jax.lax.scan(step, (h[0], c[0]), x @ w_ih.T + (b_ih + b_hh))
        return y, h[None], c[None]

    def gru(x: Any, h: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
        def step(h: Any, projected: Any) -> Any:
            r, z, n = jnp.split(projected, 3, axis=-1)
            r_h, z_h, n_h = jnp.split(h @ w_hh.T + b_hh, 3, axis=-1)
            z = sigmoid(z + z_h)
            h = (1 - z) * jnp.tanh(n + sigmoid(r + r_h) * n_h) + z * h
            return h, h

        h, y = jax.lax.scan(step, h[0], x @ w_ih.T + b_ih)
        return y, h[None]

    names = ("x", *problem.names, "w_ih", "w_hh", "b_ih", "b_hh")
    given = [jnp.asarray(problem.arrays[name]) for name in names]
    compiled = jax.jit(lstm if problem.cell == "LSTM" else gru)
    return lambda: jax.block_until_ready(compiled(*given))


# By name: the package that must be there, and how to prepare a call.
ENGINES: dict[str, tuple[str, Callable[[Problem], Call]]] = {
    "torch": ("torch", run_torch),
    "compile": ("torch", run_compiled),
    "onnxruntime": ("onnxruntime", run_onnxruntime),
    "openvino": ("openvino", run_openvino),
    "jax": ("jax", run_jax),
    "fastrnn": ("fastrnn", run_fastrnn),
    "frozen": ("fastrnn", run_frozen),
}


@torch.inference_mode()
def seconds_of(call: Call, seconds: float) -> float:
    """The median seconds of a call, of as many as last so long together.

    The first two find cold caches and do not count, unless they take far longer than that.
    """
    times: list[float] = []
    for _ in range(2):
        start = time.perf_counter()
        call()
        if (took := time.perf_counter() - start) > 10 * seconds:
            return took
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


def answers(engine: str, threads: int, commands: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Whether the engine could be loaded, then the answer to each command."""
    package, prepare = ENGINES[engine]
    try:
        importlib.import_module(package)
    except ImportError as error:
        yield {"failed": str(error)}
        return
    yield {}
    call: Call = tuple
    for command in commands:
        word, _, value = command.strip().partition(" ")
        if word == "time":
            yield {"seconds": seconds_of(call, float(value))}
            continue
        try:
            with np.load(value) as file:
                arrays = {name: file[name] for name in file.files}
            problem = Problem(str(arrays.pop("cell")), arrays, threads)
            call = prepare(problem)
            with torch.inference_mode():
                results = call()
            yield {"error": problem.error(results)}
        except Exception as error:  # an engine's own: the others go on
            yield {"failed": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Serves the process that started this one until it closes the pipe."""
    engine, threads = sys.argv[1], int(sys.argv[2])
    # Engines print what they like to standard output.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if hasattr(os, "sched_setaffinity"):  # jax takes no number of threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
    for found in answers(engine, threads, iter(sys.stdin.readline, "")):
        print(json.dumps(found), file=answer, flush=True)


if __name__ == "__main__":
    main()
