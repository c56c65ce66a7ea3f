"""The classification task: its presets, figures and pictures, and what it reaches."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from fastrnn.tasks import data, figures
from fastrnn.tasks.classification import TASK
from fastrnn.tasks.config import PixelConfig
from fastrnn.training.figures import curves

# The settings of the original experiments: cell, layers, H, batch, rate, epochs.
ORIGINAL = {
    "lstm-32": ("LSTM", 1, 32, 500, 5e-4, 100),
    "lstm-64": ("LSTM", 1, 64, 500, 5e-4, 100),
    "lstm-128": ("LSTM", 1, 128, 500, 5e-4, 100),
    "lstm-3x32": ("LSTM", 3, 32, 300, 7e-4, 100),
    "gru-32": ("GRU", 1, 32, 200, 1e-3, 40),
    "gru-64": ("GRU", 1, 64, 200, 1e-3, 40),
    "gru-128": ("GRU", 1, 128, 200, 1e-3, 40),
    "gru-3x32": ("GRU", 3, 32, 500, 6e-4, 1),
}
RECIPES = {"best-lstm-128": ("LSTM", 1, 128), "best-gru-128": ("GRU", 1, 128)}
RECIPES["best-gru-3x32"] = ("GRU", 3, 32)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", None)


class TestPresets:
    @pytest.mark.parametrize("name", ORIGINAL)
    def test_original_settings(self, name):
        cell, layers, hidden, batch, rate, epochs = ORIGINAL[name]
        assert TASK.presets[name] == PixelConfig(
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
        assert (preset.schedule, preset.clip) == ("cosine", 1.0)
        assert preset.warmup > 0

    def test_each_data_set_has_a_default(self):
        assert TASK.default_preset("digits") == "digits"
        assert TASK.default_preset("mnist") in ORIGINAL

    @pytest.mark.parametrize("name", TASK.presets)
    def test_builds_its_model(self, name, digits):
        preset = TASK.presets[name]
        layer = next(m for m in TASK.model(preset, digits).modules() if isinstance(m, nn.RNNBase))
        assert (layer.mode, layer.num_layers, layer.hidden_size) == (
            preset.cell,
            preset.num_layers,
            preset.hidden_size,
        )


class _Echo(nn.Module):
    """Logits that are sure of the class which the first pixel names."""

    def forward(self, x):
        return 50.0 * nn.functional.one_hot(x[0, :, 0].long(), 10).float()


class TestFigures:
    def test_cross_entropy_and_accuracy_of_each_image(self):
        x = torch.tensor([3.0, 4.0]).reshape(1, 2, 1)
        figures = TASK.measure(_Echo().eval(), x, torch.tensor([3, 9]), PixelConfig(), ())
        torch.testing.assert_close(figures["loss"], torch.tensor([0.0, 50.0]))
        torch.testing.assert_close(figures["accuracy"], torch.tensor([1.0, 0.0]))

    def test_an_unsure_model_loses_ln_10(self):
        logits = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, 10))).eval()
        figures = TASK.measure(logits, torch.zeros(10, 1, 1), torch.tensor([0]), PixelConfig(), ())
        assert figures["loss"].item() == pytest.approx(math.log(10))

    def test_pixels_are_dropped_in_training_only(self):
        seen = []

        class Keep(nn.Module):
            def forward(self, x):
                seen.append(x)
                return torch.zeros(x.shape[1], 10)

        x, labels, model = torch.ones(64, 50, 1), torch.zeros(50).long(), Keep()
        split, config = data.Split(x[:, :, 0].t(), labels), PixelConfig(input_dropout=0.25)
        config = dataclasses.replace(config, device="cpu")
        for training in (True, False):
            noise = TASK.noise(model.train(training), split, 50, config)
            TASK.measure(model, x, labels, config, noise)
        assert set(seen[0].unique().tolist()) == {0.0, 1.0}
        assert seen[0].mean().item() == pytest.approx(0.75, abs=0.05)
        assert torch.equal(seen[1], x)

    def test_the_best_weights_are_the_most_accurate(self):
        better, worse = {"loss": 0.9, "accuracy": 0.8}, {"loss": 0.1, "accuracy": 0.7}
        assert TASK.score(better) > TASK.score(worse)


class TestPictures:
    def test_confusion_counts_every_test_image(self, digits, monkeypatch):
        drawn: list[torch.Tensor] = []
        monkeypatch.setattr(figures, "confusion", lambda counts, worst: drawn.append(counts))
        config = PixelConfig(dataset="digits", device="cpu")
        TASK.figures(TASK.model(config, digits), digits, config)["confusion"]()
        (counts,) = drawn
        labels = torch.bincount(digits.test.labels, minlength=10)
        assert torch.equal(counts.sum(1), labels)

    def test_confusion_is_drawn_with_its_counts(self):
        figure = figures.confusion(torch.tensor([[8, 0], [1, 3]]))
        (panel,) = figure.axes
        assert sorted(text.get_text() for text in panel.texts) == ["1", "3", "8"]
        assert panel.get_title() == "test set: 91.67% of 12 right"

    def test_the_worst_confusions_are_drawn(self):
        images = torch.arange(6.0).view(6, 1, 1).expand(6, 2, 2) / 6
        labels, predicted = torch.tensor([1, 1, 1, 0, 2, 2]), torch.tensor([2, 2, 1, 1, 2, 0])
        first, *others = figures.worst(images, labels, predicted, 3)
        assert (first.true, first.predicted, first.count, first.of) == (1, 2, 2, 3)
        assert torch.equal(first.images, images[:2])
        assert [(c.true, c.predicted) for c in others] == [(0, 1), (2, 0)]
        figure = figures.confusion(torch.eye(3).long(), [first, *others])
        assert any(t.get_text() == "1 taken for 2, 2 of 3" for p in figure.axes for t in p.texts)
        assert sum(len(panel.images) for panel in figure.axes) == 1 + 4  # the matrix, and 4 images

    def test_a_model_that_is_always_right_confuses_nothing(self):
        labels = torch.arange(10)
        assert figures.worst(torch.zeros(10, 2, 2), labels, labels, 10) == []

    def test_curves_mark_the_best_epoch_and_show_units(self):
        names = ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy")
        history = [{"epoch": n, **dict.fromkeys(names, n / 10)} for n in (1, 2, 3)]
        loss, accuracy = curves(history, TASK.units, 2).axes
        assert (loss.get_xlabel(), loss.get_ylabel()) == ("epoch", "nats per image")
        assert accuracy.get_ylabel() == "% of images"
        best = next(line for line in accuracy.lines if line.get_label() == "best, epoch 2")
        assert np.asarray(best.get_xydata()).tolist() == [[2, pytest.approx(20)]]

    def test_curves_have_a_panel_for_each_figure(self):
        history = [
            {"epoch": n, "train_loss": 1 / n, "validation_loss": 2 / n, "seconds": 3.0}
            | {"train_accuracy": 1 - 1 / n, "validation_accuracy": 1 - 2 / n}
            for n in (1, 2, 3)
        ]
        figure = curves(history)
        assert [panel.get_title() for panel in figure.axes] == ["loss", "accuracy"]
        train, validation = figure.axes[0].lines
        assert np.asarray(train.get_ydata()).tolist() == [row["train_loss"] for row in history]
        assert np.asarray(validation.get_ydata()).tolist() == [
            row["validation_loss"] for row in history
        ]


def test_presets_can_be_changed_by_replacing_settings():
    changed = dataclasses.replace(TASK.presets["gru-32"], epochs=2)
    assert (changed.epochs, changed.hidden_size) == (2, 32)
