"""TensorFlow's GRU, whose reset gate comes before the recurrent product."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from fastrnn.tasks import NAMES, data, get
from fastrnn.tasks.config import PixelConfig
from fastrnn.tasks.initialisation import INITIALISATIONS
from fastrnn.tasks.reset_before import GRUResetBefore
from fastrnn.training.config import ConfigError

H = 5
CONFIG = PixelConfig(cell="GRU-RESET-BEFORE", hidden_size=H, dataset="digits", device="cpu")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def _by_hand(x, h, weights):
    """One step of one image, gate by gate, unit by unit."""
    w_ih, w_hh, b_ih, b_hh = weights

    def product(gate, unit, state):
        row = gate * H + unit
        return w_ih[row] @ x + b_ih[row] + w_hh[row] @ state + b_hh[row]

    r = torch.stack([torch.sigmoid(product(0, unit, h)) for unit in range(H)])
    z = torch.stack([torch.sigmoid(product(1, unit, h)) for unit in range(H)])
    n = torch.stack([torch.tanh(product(2, unit, r * h)) for unit in range(H)])
    return (1 - z) * n + z * h


def test_steps_by_hand():
    layer = GRUResetBefore(3, H, 2).double()
    x, h = torch.randn(4, 2, 3).double(), torch.randn(2, 2, H).double()
    output, h_n = layer(x, h)
    for image in range(2):
        rows = x[:, image]
        for k, weights in enumerate(layer.all_weights):
            state, states = h[k, image], []
            for row in rows:
                state = _by_hand(row, state, weights)
                states.append(state)
            rows = torch.stack(states)
            torch.testing.assert_close(h_n[k, image], state, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(output[:, image], rows, rtol=1e-12, atol=1e-12)


def test_differs_from_torch_by_the_reset_gate_alone():
    ours, theirs = GRUResetBefore(2, H).double(), nn.GRU(2, H).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(7, 3, 2).double()
    assert not torch.allclose(ours(x)[0], theirs(x)[0])
    with torch.no_grad():
        for weights in ours.all_weights + theirs.all_weights:
            weights[2][:H] = 100  # the gate is open
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])


def test_reads_both_ways():
    both, back = GRUResetBefore(2, H, bidirectional=True), GRUResetBefore(2, H)
    back.load_state_dict(
        {
            name.removesuffix("_reverse"): weight
            for name, weight in both.state_dict().items()
            if name.endswith("_reverse")
        }
    )
    x = torch.randn(7, 3, 2)
    output, h_n = both(x)
    reverse, last = back(x.flip(0))
    torch.testing.assert_close(output[..., H:], reverse.flip(0))
    torch.testing.assert_close(h_n[1:], last)


def test_gradients():
    layer = GRUResetBefore(1, 3).double()
    x = torch.randn(4, 2, 1).double().requires_grad_()
    h = torch.randn(1, 2, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, (x, h))


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
@pytest.mark.parametrize("task", NAMES)
def test_is_a_cell_of_every_task(task, initialisation, digits):
    config = dataclasses.replace(CONFIG, initialisation=initialisation)
    model = get(task).model(config, digits)
    x, labels = get(task).batch(digits.train, torch.arange(4), config)
    noise = get(task).noise(model, digits.train, 4, config)
    loss = get(task).measure(model, x, labels, config, noise)["loss"].mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert get(task).choose_backend(model, config, digits).backend == "reference"


def test_runs_on_no_other_backend(digits):
    config = dataclasses.replace(CONFIG, backend="cpu")
    task = get("classification")
    model = task.model(config, digits)
    with config.use_backend(), pytest.raises(ConfigError, match="'cpu' cannot run GRU-RESET-BEF"):
        task.choose_backend(model, config, digits)


def test_is_chosen_on_the_command_line(fastrnn, tmp_path):
    settings = ["--dataset=digits", "--cell=gru-reset-before", "--epochs=1", "--hidden-size=4"]
    assert fastrnn("train", "pixel-prediction", *settings, "--out", "run")[0] == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["backend"] == "reference"
