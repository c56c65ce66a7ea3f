"""The classifier: shapes, separate layers, and what each initialisation promises."""

import pytest
import torch

import fastrnn
from fastrnn.tasks.initialisation import CHRONO_STEPS, INITIALISATIONS
from fastrnn.tasks.models import Classifier


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_logits_for_each_sequence(cell: str, initialisation: str) -> None:
    model = Classifier(cell, 8, 2, 10, initialisation=initialisation)
    assert type(model.recurrent) is getattr(fastrnn, cell)
    logits = model(torch.rand(12, 5, 1))
    assert logits.shape == (5, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize("initialisation", ["orthogonal", "chrono"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_orthogonal_blocks(cell: str, initialisation: str) -> None:
    recurrent = Classifier(cell, 16, 2, 10, initialisation=initialisation).recurrent
    for layer in range(2):
        for block in getattr(recurrent, f"weight_hh_l{layer}").split(16):
            torch.testing.assert_close(block @ block.T, torch.eye(16), atol=1e-5, rtol=0)


def test_an_lstm_starts_by_remembering() -> None:
    recurrent = Classifier("LSTM", 4, 1, 10, initialisation="orthogonal").recurrent
    bias = dict(recurrent.named_parameters())["bias_ih_l0"]
    assert bias.tolist() == [0] * 4 + [1] * 4 + [0] * 8


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_chrono_units_remember_from_one_step_to_many(cell: str) -> None:
    recurrent = Classifier(cell, 500, 2, 10, initialisation="chrono").recurrent
    for layer in range(2):
        first, keep, *rest = dict(recurrent.named_parameters())[f"bias_ih_l{layer}"].split(500)
        memory = keep.exp()
        assert 1 <= memory.min() < 5
        assert CHRONO_STEPS - 5 < memory.max() <= CHRONO_STEPS - 1 + 1e-3
        assert first.equal(-keep if cell == "LSTM" else torch.zeros(500))
        assert not any(bias.any() for bias in rest)


def test_tensorflow_biases() -> None:
    recurrent = Classifier("GRU", 4, 1, 10, initialisation="tensorflow").recurrent
    biases = dict(recurrent.named_parameters())
    assert biases["bias_ih_l0"].tolist() == [1] * 8 + [0] * 4
    assert not biases["bias_hh_l0"].any()


def test_an_unknown_initialisation_names_the_known() -> None:
    with pytest.raises(ValueError, match="orthogonal"):
        Classifier("GRU", 4, 1, 10, initialisation="xavier")
