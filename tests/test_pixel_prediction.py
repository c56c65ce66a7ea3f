"""The pixel-prediction task: its presets, figures and picture, and what it reaches."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from fastrnn.tasks import data, figures
from fastrnn.tasks.config import PixelConfig
from fastrnn.tasks.pixel_prediction import TASK

# The settings of the original experiments: layers, H, batch, rate, epochs; GRUs there, and here the
# same with LSTMs.
ORIGINAL = {
    "32": (1, 32, 500, 5e-4, 100),
    "64": (1, 64, 500, 5e-4, 100),
    "128": (1, 128, 500, 5e-4, 100),
    "3x32": (3, 32, 300, 1.5e-3, 130),
}
RECIPES = {"best-lstm-128": ("LSTM", 1, 128), "best-gru-128": ("GRU", 1, 128)}
RECIPES["best-gru-3x32"] = ("GRU", 3, 32)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", None)


class TestPresets:
    @pytest.mark.parametrize("cell", ["GRU", "LSTM"])
    @pytest.mark.parametrize("size", ORIGINAL)
    def test_original_settings(self, cell, size):
        layers, hidden, batch, rate, epochs = ORIGINAL[size]
        assert TASK.presets[f"{cell.lower()}-{size}"] == PixelConfig(
            cell=cell,
            num_layers=layers,
            hidden_size=hidden,
            batch_size=batch,
            learning_rate=rate,
            epochs=epochs,
            schedule="constant",
            clip=0.0,
            initialisation="torch",
            pixels="binary",
        )

    @pytest.mark.parametrize("name", RECIPES)
    def test_recipes_of_our_own(self, name):
        preset = TASK.presets[name]
        assert (preset.cell, preset.num_layers, preset.hidden_size) == RECIPES[name]
        assert preset.schedule == "cosine"
        assert preset.warmup > 0

    def test_each_data_set_has_a_default(self):
        assert TASK.default_preset("digits") == "digits"
        assert TASK.default_preset("mnist") in TASK.presets

    @pytest.mark.parametrize("name", TASK.presets)
    def test_builds_its_model(self, name, digits):
        preset = TASK.presets[name]
        layer = next(m for m in TASK.model(preset, digits).modules() if isinstance(m, nn.RNNBase))
        assert (layer.mode, layer.num_layers, layer.hidden_size) == (
            preset.cell,
            preset.num_layers,
            preset.hidden_size,
        )


class _Repeat(nn.Module):
    """Odds of 3 to 1 that the next pixel is like this one."""

    def forward(self, x):
        return math.log(3) * (2 * x[:, :, 0] - 1)


class TestFigures:
    def test_nats_an_image_and_accuracy_by_hand(self):
        x = torch.tensor([[0.0, 0, 0, 1, 1], [1, 0, 1, 0, 1]]).t().unsqueeze(2)
        figures = TASK.measure(_Repeat().eval(), x, torch.zeros(2), PixelConfig(), ())
        right, wrong = -math.log(3 / 4), -math.log(1 / 4)
        expected = torch.tensor([3 * right + wrong, 4 * wrong])
        torch.testing.assert_close(figures["loss"], expected)
        torch.testing.assert_close(figures["accuracy"], torch.tensor([3 / 4, 0.0]))

    def test_an_unsure_model_loses_ln_2_for_each_pixel_but_the_first(self):
        unsure = nn.Sequential(nn.Flatten(1)).eval()  # the logit of a pixel 0 is 0
        figures = TASK.measure(unsure, torch.zeros(784, 3, 1), torch.zeros(3), PixelConfig(), ())
        torch.testing.assert_close(figures["loss"], torch.full((3,), 783 * math.log(2)))

    def test_no_logit_sees_its_own_pixel_or_a_later_one(self, digits):
        model = TASK.model(PixelConfig(), digits).eval()
        x = torch.rand(64, 1, 1).round()
        other = x.clone()
        other[40:] = 1 - other[40:]
        first, second = model(x[:-1]), model(other[:-1])
        assert torch.equal(first[:40], second[:40])  # up to the logit of pixel 40
        assert not torch.equal(first[40], second[40])

    def test_pixels_are_dropped_from_the_input_in_training_only(self):
        seen = []

        class Keep(nn.Module):
            def forward(self, x):
                seen.append(x)
                return torch.zeros(x.shape[:2])

        x, labels, model = torch.ones(64, 50, 1), torch.zeros(50), Keep()
        split = data.Split(x[:, :, 0].t(), labels)
        config = PixelConfig(input_dropout=0.25, device="cpu")
        dropped, _ = (
            TASK.measure(
                model, x, labels, config, TASK.noise(model.train(training), split, 50, config)
            )
            for training in (True, False)
        )
        assert set(seen[0].unique().tolist()) == {0.0, 1.0}
        assert seen[0].mean().item() == pytest.approx(0.75, abs=0.05)
        assert torch.equal(seen[1], x[:-1])
        assert not dropped["accuracy"].any()  # what is predicted is still all ones

    def test_the_best_weights_have_the_fewest_nats(self):
        better, worse = {"loss": 55.0, "accuracy": 0.7}, {"loss": 56.0, "accuracy": 0.8}
        assert TASK.score(better) > TASK.score(worse)


class TestLossMap:
    def test_sums_to_the_loss_of_the_test_set(self, digits, monkeypatch):
        drawn: list[torch.Tensor] = []
        monkeypatch.setattr(figures, "loss_map", drawn.append)
        config = PixelConfig(dataset="digits", device="cpu")
        model = TASK.model(config, digits).eval()
        TASK.figures(model, digits, config)["loss_map"]()
        (nats,) = drawn
        assert nats.shape == (8, 8)
        assert nats[0, 0] == 0  # the first pixel is not predicted
        assert (nats.flatten()[1:] > 0).all()
        x = data.sequences(digits.test.images, grey=False)
        with torch.no_grad():
            loss = TASK.measure(model, x, digits.test.labels, config, ())["loss"].mean()
        assert nats.sum().item() == pytest.approx(loss.item(), rel=1e-5)

    def test_is_drawn_with_its_sum(self):
        panel, colours = figures.loss_map(torch.full((4, 6), 0.5)).axes
        assert panel.get_title() == "test set: 12.00 nats per image"
        assert np.asarray(panel.images[0].get_array()).shape == (4, 6)
        assert colours.get_ylabel() == "mean loss, nats per pixel"


class TestCommand:
    def test_learns_the_bundled_digits(self, fastrnn, tmp_path, digits):
        arguments = ["--dataset", "digits", "--epochs", 15, "--out", tmp_path / "run"]
        status, out, err = fastrnn("train", "pixel-prediction", *arguments)
        assert status == 0, err
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert f"test loss {summary['test_loss']:.4f}" in out
        assert (tmp_path / "run" / "loss_map.png").stat().st_size > 0
        # Better than each pixel's own frequency (25.2) and a table of ten neighbours (25.0).
        frequency = digits.train.images.float().mean(0).clamp(1e-3, 1 - 1e-3)
        test = digits.test.images.float()
        own = nn.functional.binary_cross_entropy(frequency.expand_as(test), test, reduction="none")
        assert summary["test_loss"] < own[:, 1:].sum(1).mean() - 4
