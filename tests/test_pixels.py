"""Likelihoods and completions of images: exact, and the same on every backend."""

import itertools
import sys

import pytest
import torch

import fastrnn
from benchmarks import pixel_loops
from fastrnn.tasks import data, pixel_steps, pixels
from fastrnn.tasks.config import PixelConfig
from fastrnn.tasks.models import PixelModel
from fastrnn.tasks.pixel_prediction import TASK
from tests import oracle

SHAPES = [  # layers, H, images, pixels
    pytest.param(1, 1, 3, 2, id="H1"),
    pytest.param(1, 33, 65, 17, id="H33"),
    pytest.param(3, 5, 7, 64, id="3x5"),
    pytest.param(3, 32, 2, 9, id="3x32"),
]
CHI_SQUARE_31 = 61.1  # one statistic in a thousand is larger


def _model(cell="GRU", layers=1, hidden=9):
    torch.manual_seed(0)
    return PixelModel(cell, hidden, layers, initialisation="tensorflow").eval()  # sure of some


def _images(count, size):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(count, size, generator=generator) < 0.4).to(torch.uint8)


def _uniforms(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


def _teacher_forced(model, images):
    """Logits [B, P] of the pixel after each."""
    with torch.no_grad():
        return model(data.sequences(images, grey=False)).t()


def _close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def _tensors(state):
    return [t for t in vars(state).values() if t is not None]


@pytest.mark.parametrize("cell", oracle.CELLS)
@pytest.mark.parametrize(("layers", "hidden", "count", "size"), SHAPES)
class TestAnyModel:
    def test_score_is_the_teacher_forced_loss(self, backend, cell, layers, hidden, count, size):
        model, images = _model(cell, layers, hidden), _images(count, size)
        x = data.sequences(images, grey=False)
        with torch.no_grad():
            loss = TASK.measure(model, x, torch.zeros(count), PixelConfig(), ())["loss"]
        found = pixels.score(model, images)
        assert found.dtype == torch.float64
        torch.testing.assert_close(-found, loss.double(), rtol=1e-5, atol=0)

    def test_reading_gives_the_model_s_logits(self, backend, cell, layers, hidden, count, size):
        model, images = _model(cell, layers, hidden), _images(count, size)
        logits, state = pixels.advance(model, images)
        _close(logits, _teacher_forced(model, images))
        assert torch.equal(state.logit, logits[:, -1])
        assert not state.log_likelihood.requires_grad
        assert not logits.requires_grad

    def test_reading_twice_is_reading_once(self, backend, cell, layers, hidden, count, size):
        model, images = _model(cell, layers, hidden), _images(count, size)
        logits, state = pixels.advance(model, images)
        first, half = pixels.advance(model, images[:, : size // 2])
        second, both = pixels.advance(model, images[:, size // 2 :], half)
        _close(torch.cat([first, second], 1), logits)
        for found, wanted in zip(_tensors(both), _tensors(state), strict=True):
            _close(found, wanted)

    def test_rows_of_different_lengths_are_each_read_alone(
        self, backend, cell, layers, hidden, count, size
    ):
        model, images = _model(cell, layers, hidden), _images(count, size)
        lengths = torch.arange(count) * 7 % size + 1
        logits, state = pixels.advance(model, images, lengths=lengths)
        for row, length in enumerate(lengths.tolist()):
            alone, own = pixels.advance(model, images[row : row + 1, :length])
            _close(logits[row, :length], alone[0])
            assert not logits[row, length:].any()
            part = state.select(slice(row, row + 1))
            for found, wanted in zip(_tensors(part), _tensors(own), strict=True):
                _close(found, wanted)

    def test_sampled_logits_are_teacher_forced_ones(
        self, backend, cell, layers, hidden, count, size
    ):
        model, prefix = _model(cell, layers, hidden), _images(count, size)
        uniforms = _uniforms(count, 3, 11)
        drawn, logits = pixels.sample(model, prefix, 11, uniforms)
        whole = torch.cat([prefix.repeat_interleave(3, 0), drawn.flatten(0, 1)], 1)
        _close(logits.flatten(0, 1), _teacher_forced(model, whole)[:, size - 1 : -1])
        assert drawn.dtype == torch.uint8
        assert torch.equal(drawn == 1, uniforms < logits.double().sigmoid())

    def test_every_backend_and_thread_count_draws_the_same(
        self, backend, cell, layers, hidden, count, size
    ):
        model, prefix = _model(cell, layers, hidden), _images(count, size)
        uniforms = _uniforms(count, 3, 11)
        with fastrnn.backend("reference"):
            wanted, _ = pixels.sample(model, prefix, 11, uniforms)
        for threads in (1, 2, 3):
            with oracle.threads(threads):
                found, _ = pixels.sample(model, prefix, 11, uniforms)
            assert torch.equal(found, wanted)


class TestSampling:
    model, prefix = _model(), torch.tensor([[1]], dtype=torch.uint8)

    def probabilities(self):
        """Of the 32 images of six pixels that start with the prefix, in binary order."""
        images = torch.tensor(list(itertools.product([0, 1], repeat=5)), dtype=torch.uint8)
        return pixels.score(self.model, torch.cat([self.prefix.expand(32, 1), images], 1)).exp()

    def statistic(self, uniforms):
        """Chi-square of the samples' frequencies."""
        drawn, _ = pixels.sample(self.model, self.prefix, 5, uniforms)
        places = (drawn[0].long() * torch.tensor([16, 8, 4, 2, 1])).sum(1)
        wanted = self.probabilities() * len(places)
        assert wanted.min() >= 5  # else the statistic is not chi-square's
        return ((torch.bincount(places, minlength=32) - wanted) ** 2 / wanted).sum()

    def test_probabilities_of_all_images_sum_to_one(self, backend):
        assert self.probabilities().sum() == pytest.approx(1, rel=1e-6)

    def test_frequencies_are_the_probabilities(self, backend):
        assert self.statistic(_uniforms(1, 20000, 5)) < CHI_SQUARE_31

    def test_other_frequencies_are_noticed(self):
        assert self.statistic(_uniforms(1, 20000, 5) ** 1.1) > CHI_SQUARE_31

    def test_extreme_numbers_decide(self, backend):
        """Zero is below any probability; the largest number below 1 is above all but 1."""
        largest = 1 - 2.0**-24
        uniforms = torch.tensor([[[0.0] * 4, [largest] * 4]])
        drawn, _ = pixels.sample(self.model, self.prefix, 4, uniforms)
        assert drawn.tolist() == [[[1] * 4, [0] * 4]]

    def test_blocks_change_nothing(self, backend, monkeypatch):
        prefix, uniforms = _images(5, 4), _uniforms(5, 3, 6)
        wanted = pixels.sample(self.model, prefix, 6, uniforms)
        monkeypatch.setattr(pixels, "_ROWS", 4)
        found = pixels.sample(self.model, prefix, 6, uniforms)
        assert torch.equal(found[0], wanted[0])
        _close(found[1], wanted[1])

    @pytest.mark.parametrize(("count", "samples", "steps"), [(0, 2, 3), (2, 0, 3), (2, 3, 0)])
    def test_nothing_to_draw(self, backend, count, samples, steps):
        uniforms = _uniforms(count, samples, steps)
        drawn, logits = pixels.sample(self.model, _images(count, 4), steps, uniforms)
        assert drawn.shape == logits.shape == (count, samples, steps)


class TestState:
    @pytest.mark.parametrize("cell", oracle.CELLS)
    def test_forks_go_their_own_ways_and_leave_it_as_it_was(self, backend, cell):
        model, images = _model(cell, 2), _images(3, 10)
        _, state = pixels.advance(model, images[:, :4])
        before = [t.clone() for t in _tensors(state)]
        continued = torch.cat([images[:, 4:], 1 - images[:, 4:]], 1).view(6, 6)
        found = pixels.score(model, continued, state.repeat(2))
        whole = torch.cat([images[:, :4].repeat_interleave(2, 0), continued], 1)
        _close(found, pixels.score(model, whole))
        assert all(map(torch.equal, _tensors(state), before))

    def test_different_places_are_continued_together(self, backend):
        model, images, first = _model(), _images(3, 10), torch.tensor([2, 9, 5])
        _, state = pixels.advance(model, images, lengths=first)
        rest = torch.zeros(3, 8, dtype=torch.uint8)
        for row, start in enumerate(first.tolist()):
            rest[row, : 10 - start] = images[row, start:]
        found = pixels.score(model, rest, state, lengths=10 - first)
        _close(found, pixels.score(model, images))

    def test_reading_nothing_changes_nothing(self, backend):
        model, images = _model("LSTM"), _images(3, 10)
        _, state = pixels.advance(model, images)
        for none in ({"lengths": torch.zeros(3, dtype=torch.int64)}, {}):
            logits, after = pixels.advance(model, images[:, : 4 * len(none)], state, **none)
            assert not logits.any()
            assert all(map(torch.equal, _tensors(after), _tensors(state)))

    def test_no_images(self, backend):
        logits, state = pixels.advance(_model(), _images(0, 5))
        assert logits.shape == (0, 5)
        assert state.repeat(2).h.shape == (1, 0, 9)
        assert pixels.score(_model(), _images(0, 5)).shape == (0,)


class TestModels:
    """What has no native loop runs by the model's layers."""

    def test_float64(self):
        images = _images(5, 20)
        found = pixels.score(_model().double(), images)
        torch.testing.assert_close(pixels.score(_model(), images), found, rtol=1e-5, atol=0)

    def test_reset_before_the_product(self):
        model, images = _model("GRU-RESET-BEFORE", 2), _images(5, 20)
        logits, _ = pixels.advance(model, images, lengths=torch.arange(5) + 1)
        _close(logits[4, 4], _teacher_forced(model, images)[4, 4])

    def test_torch_s_layers(self):
        images = _images(5, 20)
        with fastrnn.backend("torch"):
            found = pixels.score(_model("LSTM", 2), images)
        _close(found, pixels.score(_model("LSTM", 2), images))

    def test_blocks_of_steps_change_nothing(self, monkeypatch):
        model, images = _model(), _images(5, 20)
        wanted = pixels.score(model, images)
        monkeypatch.setattr(pixel_steps, "_VALUES", 3 * 5 * 9)
        with fastrnn.backend("reference"):
            _close(pixels.score(model, images), wanted)

    def test_a_forced_backend_that_cannot_run_raises(self):
        with fastrnn.backend("triton"), pytest.raises(RuntimeError, match="tensors are on cpu"):
            pixels.score(_model(), _images(5, 20))


class TestBenchmark:
    """benchmarks.pixel_loops reports no speed for wrong numbers."""

    arguments = "pixel_loops --hidden=4 --images=2 --samples=2 --steps=5 --holes=3 --rounds=1"

    def test_prints_each_peer(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", self.arguments.split())
        pixel_loops.main()
        lines = capsys.readouterr().out.splitlines()
        assert sum(line.startswith("| fastrnn") for line in lines) == 3
        assert sum(line.startswith("| torch.nn") for line in lines) == 4

    def test_refuses_what_is_wrong(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", self.arguments.split())
        score = pixels.score
        monkeypatch.setattr(pixels, "score", lambda *args: 1.001 * score(*args))
        with pytest.raises(SystemExit, match=r"relative error .* nothing is timed"):
            pixel_loops.main()
        assert "Scoring" not in capsys.readouterr().out  # which would be the table's title


class TestErrors:
    """One line with what was given and what is expected."""

    model = _model()

    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (_images(2, 5).float(), r"torch.float32 \(2, 5\) given, uint8 \[B, n\] expected"),
            (_images(2, 5)[0], r"torch.uint8 \(5,\) given, uint8 \[B, n\] expected"),
            (_images(2, 0), "n at least 1"),
            (_images(2, 5) + 1, "2 given, only 0 and 1 expected"),
        ],
    )
    def test_of_pixels(self, images, message):
        for call in (
            lambda: pixels.score(self.model, images),
            lambda: pixels.advance(self.model, images),
            lambda: pixels.sample(self.model, images, 3, _uniforms(2, 1, 3)),
        ):
            with pytest.raises(ValueError, match=message) as error:
                call()
            assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("uniforms", "message"),
        [
            (_uniforms(2, 1, 4), r"\(2, 1, 4\) given, float32 \(2, S, 3\) expected"),
            (_uniforms(2, 3), r"\(2, 3\) given, float32 \(2, S, 3\) expected"),
            (_uniforms(2, 1, 3).double(), "torch.float64"),
            (_uniforms(2, 1, 3) + 1, "0 <= u < 1 expected"),
            (_uniforms(2, 1, 3) * float("nan"), "0 <= u < 1 expected"),
        ],
    )
    def test_of_uniforms(self, uniforms, message):
        with pytest.raises(ValueError, match=message):
            pixels.sample(self.model, _images(2, 5), 3, uniforms)

    @pytest.mark.parametrize(
        ("lengths", "message"),
        [
            ([1, 2, 3], r"\(3,\) given, int64 \(2,\) expected"),
            ([1.0, 2.0], "torch.float32"),
            ([0, 2], "0 to 2 given, 1 to 5 expected"),
            ([1, 6], "1 to 6 given, 1 to 5 expected"),
        ],
    )
    def test_of_lengths(self, lengths, message):
        with pytest.raises(ValueError, match=message):
            pixels.advance(self.model, _images(2, 5), lengths=torch.tensor(lengths))

    def test_of_a_state_of_something_else(self):
        _, state = pixels.advance(_model("LSTM"), _images(2, 5))
        with pytest.raises(ValueError, match=r"state.c: torch.float32 .* given, none expected"):
            pixels.advance(self.model, _images(2, 5), state)
        _, state = pixels.advance(self.model, _images(2, 5))
        with pytest.raises(ValueError, match=r"state.h: .*\(1, 2, 9\) .*, .*\(1, 3, 9\) .*expect"):
            pixels.score(self.model, _images(3, 5), state)
