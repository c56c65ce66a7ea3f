"""Completing images: what is drawn, how it is judged, what is written, and how it fails."""

import math

import numpy as np
import pytest
import torch

from fastrnn.tasks import completion, completion_figures, completion_files, data
from fastrnn.tasks.completion_figures import KNOWN, PREDICTED, UNKNOWN
from fastrnn.tasks.config import PixelConfig
from fastrnn.tasks.models import PixelModel
from fastrnn.tasks.pixel_prediction import TASK
from fastrnn.training.config import ConfigError

CONFIG = PixelConfig(dataset="digits", device="cpu")
WINDOW = 22


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module", params=["GRU", "LSTM", "GRU-RESET-BEFORE"])
def model(request):
    torch.manual_seed(0)
    return PixelModel(request.param, 8, 2, initialisation="tensorflow").eval()


def _complete(model, digits, window=WINDOW, images=7, samples=5, seed=3, show=lambda done: None):
    return completion.complete(
        model,
        digits.test,
        window=window,
        images=images,
        samples=samples,
        seed=seed,
        show=show,
    )


@pytest.fixture(scope="module")
def done(model, digits):
    return _complete(model, digits)


class TestDrawing:
    def test_each_pixel_is_drawn_from_its_logit_given_those_before_it(self, done, model, digits):
        """Every pixel of the window, including the last; logits as if the whole image was read."""
        completed = done.images[:, None].repeat(1, 5, 1)
        completed[:, :, -WINDOW:] = done.samples
        x = data.sequences(completed.flatten(0, 1), grey=False)
        with torch.no_grad():
            logits = model(x[:-1])[-WINDOW:].t().view(7, 5, WINDOW)
        torch.testing.assert_close(done.logits, logits, atol=1e-5, rtol=1e-5)
        generator = torch.Generator().manual_seed(3)
        torch.randperm(len(digits.test), generator=generator)
        uniforms = torch.rand(7, 5, WINDOW, generator=generator)
        assert torch.equal(done.samples, (uniforms < logits.sigmoid()).to(torch.uint8))

    def test_images_are_from_the_test_set(self, done, digits):
        assert len(set(done.rows.tolist())) == 7
        assert torch.equal(done.images, digits.test.images[done.rows])
        assert torch.equal(done.labels, digits.test.labels[done.rows])

    def test_the_seed_chooses_images_and_samples(self, done, model, digits):
        again, other = _complete(model, digits), _complete(model, digits, seed=4)
        assert torch.equal(again.samples, done.samples)
        assert not torch.equal(other.rows, done.rows)

    def test_every_backend_draws_the_same(self, done, model, digits, backend):
        found = _complete(model, digits)
        assert torch.equal(found.samples, done.samples)
        torch.testing.assert_close(found.logits, done.logits, atol=1e-5, rtol=1e-5)

    def test_batches_change_nothing_and_show_progress(self, done, model, digits, monkeypatch):
        monkeypatch.setattr(completion, "BATCH", 3)
        shown: list[int] = []
        found = _complete(model, digits, show=shown.append)
        assert shown == [3, 6, 7]
        assert torch.equal(found.samples, done.samples)

    def test_all_but_the_first_pixel(self, model, digits):
        found = _complete(model, digits, window=63, samples=1)
        x, labels = data.sequences(found.images, grey=False), found.labels
        with torch.no_grad():
            loss = TASK.measure(model, x, labels, CONFIG, ())["loss"]
        torch.testing.assert_close(found.true_nats([63])[:, 0].float(), loss)


class TestFigures:
    def made(self):
        """One image, two samples of three pixels; odds of 3 to 1 for a one, then for a zero."""
        logits = math.log(3) * torch.tensor([1.0, -1, 1])
        return completion.Completions(
            rows=torch.tensor([0]),
            images=torch.tensor([[1, 0, 0, 1]], dtype=torch.uint8),
            labels=torch.tensor([1]),
            samples=torch.tensor([[[1, 0, 1], [1, 1, 0]]], dtype=torch.uint8),
            logits=logits.expand(1, 2, 3),
            true_logits=logits.expand(1, 3),
            seconds=0.0,
        )

    right, wrong = -math.log(3 / 4), -math.log(1 / 4)

    def test_nats_of_the_first_pixels_by_hand(self):
        right, wrong = self.right, self.wrong
        sampled = [[[right, 3 * right], [right, right + 2 * wrong]]]
        assert np.allclose(self.made().sample_nats([1, 3]), sampled)
        assert np.allclose(self.made().true_nats([1, 3]), [[wrong, wrong + 2 * right]])

    def test_variance_over_the_samples_by_hand(self):
        assert np.allclose(self.made().variance([1, 2, 3]), [[0, 1 / 8, 1 / 6]])

    def test_means_by_length(self):
        first, last = completion.means(self.made(), [1, 3])
        assert first["true_nats"] == first["true_nats_per_pixel"] == pytest.approx(self.wrong)
        assert last["pixels"] == 3
        assert last["sample_nats"] == pytest.approx(2 * self.right + self.wrong)
        assert last["sample_nats_per_pixel"] == pytest.approx(last["sample_nats"] / 3)

    def test_sets_are_the_extremes_of_each_length(self, done):
        lengths = (1, 4, 8, 22)
        sets = completion_files.sets(done, lengths)
        for k, length in enumerate(lengths):
            true, variance = done.true_nats(lengths)[:, k], done.variance(lengths)[:, k]
            orders = [sets[f"{which}/{length}.png"][1] for which in ("fail", "good", "var")]
            assert true[orders[0][0]] == true.max()
            assert true[orders[1][0]] == true.min()
            assert variance[orders[2][0]] == variance.max()
        assert len({tuple(sets[f"fail/{n}.png"][1].tolist()) for n in lengths}) > 1


class TestLengths:
    def test_default_by_data_set(self, digits):
        assert completion.checked_lengths(None, digits) == (1, 4, 8, 22)
        assert completion.LENGTHS["mnist"] == (1, 10, 28, 300)

    def test_any_order(self, digits):
        assert completion.checked_lengths("63, 1,8", digits) == (1, 8, 63)

    @pytest.mark.parametrize("text", ["", "0", "64", "1,1", "1,,2", "-1", "1.5", "all"])
    def test_others_are_refused(self, digits, text):
        with pytest.raises(ConfigError, match="expected different whole numbers from 1 to 63"):
            completion.checked_lengths(text, digits)


class TestPictures:
    def test_parts_have_their_colours(self):
        images = torch.tensor([[[1, 0, 1], [0, 1, 1]]])
        found = completion_figures.coloured(images, (2, KNOWN), (None, PREDICTED))
        (k0, k1), (p0, p1) = KNOWN, PREDICTED
        assert np.array_equal(found, [[[k1, k0, p1], [p0, p1, p1]]])

    def test_samples_are_ordered_by_likelihood(self):
        nats = torch.tensor([[3.0, 1.0, 2.0], [5.0, 6.0, 4.0]])
        assert completion_figures.ranks(nats).tolist() == [[1, 2, 0], [2, 0, 1]]
        many = completion_figures.ranks(torch.rand(2, 50))
        assert many.shape == (2, completion_figures.SHOWN)
        nats = torch.arange(50.0).flip(0)[None]
        (shown,) = nats.gather(1, completion_figures.ranks(nats))
        assert (shown[0], shown[-1]) == (0, 49)
        assert (shown.diff() > 0).all()

    def test_a_row_for_each_image_with_titles_and_captions(self):
        truth, samples = torch.zeros(2, 4, 4), torch.ones(2, 3, 4, 4)
        figure = completion_figures.completions(
            "of two", truth, samples, known=10, predicted=4, captions=["one", "two"]
        )
        texts = [text.get_text() for text in figure.texts]
        names = ["known", "true", "likeliest", "…", "least likely"]
        assert texts == ["of two", completion_figures.KEY, *names, "one", "two"]
        (picture,) = figure.images
        colours = {tuple(rgb) for rgb in np.asarray(picture.get_array()).reshape(-1, 3).tolist()}
        kinds = {
            KNOWN[0],
            *PREDICTED,
            UNKNOWN[0],
            (1.0, 1.0, 1.0),
        }
        assert colours == kinds | {KNOWN[1]}
