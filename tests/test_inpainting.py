"""In-painting: the likeliest filling by both kinds of model, its figures, and what is written."""

import csv
import itertools
import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from fastrnn.tasks import figures, filling, filling_files, holes, pixels
from fastrnn.tasks.models import Inpainter, PixelModel
from tests import oracle

HEIGHT, WIDTH = 3, 5
PIXELS = HEIGHT * WIDTH


def _truth(count):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(count, PIXELS, generator=generator) < 0.4).to(torch.uint8)


def _hidden(count, k, first=False):
    """k holes in each image, anywhere; the first pixel in all of them or in none."""
    generator = torch.Generator().manual_seed(2)
    order = torch.rand(count, PIXELS, generator=generator)
    order[:, 0] = 2 if first else -1
    return order >= order.topk(k).values[:, -1:]


@pytest.fixture(scope="module", params=[*oracle.CELLS, "GRU-RESET-BEFORE"])
def model(request):
    torch.manual_seed(0)
    return PixelModel(request.param, 8, 2, initialisation="tensorflow").eval()  # sure of some


@pytest.fixture(scope="module", params=oracle.CELLS)
def painter(request):
    torch.manual_seed(0)
    return Inpainter(HEIGHT, WIDTH, request.param, 6, 1, initialisation="tensorflow").eval()


def _all_fillings(model, image, hidden):
    """Every filling and its log-likelihood, each scored from the start; likeliest first."""
    scored = []
    for values in itertools.product((0, 1), repeat=int(hidden.sum())):
        filled = image.clone()
        filled[hidden] = torch.tensor(values, dtype=torch.uint8)
        scored.append((pixels.score(model, filled[None]).item(), filled))
    return sorted(scored, key=lambda pair: -pair[0])


class TestByLikelihood:
    @pytest.mark.parametrize("k", [1, 2, 4, 8])
    @pytest.mark.parametrize("first", [False, True])
    def test_is_the_best_of_all_fillings(self, model, k, first):
        images, hidden = _truth(6), _hidden(6, k, first)
        filled, likelihood = filling.by_likelihood(model, images, hidden)
        for i in range(6):
            score, best = _all_fillings(model, images[i], hidden[i])[0]
            assert likelihood[i].item() == pytest.approx(score, rel=1e-5)
            assert torch.equal(filled[i], best)

    def test_does_not_look_at_hidden_pixels(self, model):
        images, hidden = _truth(6), _hidden(6, 4)
        found, again = (
            filling.by_likelihood(model, each, hidden) for each in (images, images ^ hidden)
        )
        assert torch.equal(found[0], again[0])
        assert torch.equal(found[1], again[1])

    def test_every_backend_fills_alike(self, model, backend):
        images, hidden = _truth(6), _hidden(6, 4)
        filled, likelihood = filling.by_likelihood(model, images, hidden)
        for i in range(6):
            score, best = _all_fillings(model, images[i], hidden[i])[0]
            assert torch.equal(filled[i], best)
            assert likelihood[i].item() == pytest.approx(score, rel=1e-5)

    @pytest.mark.parametrize("width", [1, 3, 16])
    def test_a_beam_follows_the_likeliest_so_far(self, model, width):
        """Beside a search over lists, image by image, that scores from the start."""
        images, hidden = _truth(4), _hidden(4, 6)
        filled, likelihood = filling.by_likelihood(model, images, hidden, width)
        for i in range(4):
            places = [*hidden[i].nonzero()[:, 0].tolist(), PIXELS]
            beam = [images[i]]
            for place, end in itertools.pairwise(places):
                forks = []
                for image, value in itertools.product(beam, (0, 1)):
                    forks.append(image.clone())
                    forks[-1][place] = value
                scores = [pixels.score(model, fork[None, :end]).item() for fork in forks]
                order = sorted(range(len(forks)), key=lambda j: -scores[j])[:width]
                beam = [forks[j] for j in order]
            assert torch.equal(filled[i], beam[0])
            assert likelihood[i].item() == pytest.approx(scores[order[0]], rel=1e-5)

    def test_all_holes_but_one_pixel_stay_within_the_beam(self, model):
        images, hidden = _truth(2), torch.ones(2, PIXELS, dtype=torch.bool)
        hidden[:, 7] = False
        filled, likelihood = filling.by_likelihood(model, images, hidden, 4)
        assert torch.equal(filled[:, 7], images[:, 7])
        scores = pixels.score(model, filled)
        torch.testing.assert_close(likelihood, scores, rtol=1e-5, atol=0)


class TestFromBothSides:
    def test_one_hole_is_the_likelier_value(self, painter):
        images, hidden = _truth(30), _hidden(30, 1)
        filled, nats = filling.from_both_sides(painter, images, hidden)
        with torch.no_grad():
            logits = painter(images.t().float(), hidden.t()).t()[hidden]
        assert torch.equal(filled[hidden], (logits > 0).to(torch.uint8))
        torch.testing.assert_close(nats.float(), functional.softplus(-logits.abs()))
        assert torch.equal(filled[~hidden], images[~hidden])

    def test_the_surest_pixel_is_filled_first_and_read_by_the_next(self, painter):
        image, left = _truth(1), _hidden(1, 4)
        filled, nats = filling.from_both_sides(painter, image, left)
        total, image, left = 0.0, image.masked_fill(left, 0), left.clone()
        while left.any():
            with torch.no_grad():
                logits = painter(image.t().float(), left.t())[:, 0]
            place = max(left[0].nonzero()[:, 0].tolist(), key=lambda p: abs(logits[p]))
            image[0, place] = logits[place] > 0
            left[0, place] = False
            total += functional.softplus(-logits[place].abs()).item()
        assert torch.equal(filled, image)
        assert nats.item() == pytest.approx(total, rel=1e-5)

    def test_does_not_look_at_hidden_pixels_unless_forced(self, painter):
        images, hidden = _truth(9), _hidden(9, 4)
        found = filling.from_both_sides(painter, images, hidden)
        again = filling.from_both_sides(painter, images ^ hidden, hidden)
        assert all(map(torch.equal, found, again))
        forced, _ = filling.from_both_sides(painter, images, hidden, forced=True)
        assert torch.equal(forced, images)
        same = filling.from_both_sides(painter, found[0], hidden, forced=True)
        assert all(map(torch.equal, found, same))


def _mixed():
    """Images with 1, 2, 3, ... holes, in no order, the first pixel among them in one."""
    hidden = torch.cat([_hidden(1, k) for k in (3, 1, 5, 1, 2)] + [_hidden(1, 2, first=True)])
    return holes.Holes(_truth(6), hidden)


class TestFill:
    def test_each_image_as_if_alone(self, model, monkeypatch):
        wanted = _mixed()
        shown: list[int] = []
        found = filling.fill(model, wanted, 4, shown.append)
        assert (shown[-1], sorted(shown)) == (6, shown)
        monkeypatch.setattr(filling, "BATCH", 1)
        alone = filling.fill(model, wanted, 4, shown.append)
        for i in range(6):
            image, hidden = wanted.truth[i : i + 1], wanted.hidden[i : i + 1]
            filled, likelihood = filling.by_likelihood(model, image, hidden, 4)
            assert torch.equal(found.pixels[i], filled[0])
            assert torch.equal(alone.pixels[i], filled[0])
            assert found.nats[i].item() == pytest.approx(-likelihood.item(), rel=1e-5)
        torch.testing.assert_close(found.true_nats, -pixels.score(model, wanted.truth))

    def test_from_both_sides(self, painter):
        wanted = _mixed()
        found = filling.fill(painter, wanted, 4, lambda done: None)
        filled, nats = filling.from_both_sides(painter, wanted.truth, wanted.hidden)
        assert torch.equal(found.pixels, filled)
        torch.testing.assert_close(found.nats, nats, rtol=1e-5, atol=1e-6)


class TestWritten:
    wanted = holes.Holes(
        torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0]], dtype=torch.uint8),
        torch.tensor([[False, True, True, False], [True, False, False, False]]),
    )
    found = filling.Inpainted(
        torch.tensor([[1, 1, 1, 1], [0, 0, 1, 0]], dtype=torch.uint8),
        torch.tensor([1.0, 2.0], dtype=torch.float64),
        torch.tensor([1.5, 2.0], dtype=torch.float64),
    )

    def test_figures_by_hand(self):
        assert filling.metrics(self.wanted, self.found) == {
            "exact_accuracy": 1 / 2,
            "pixel_accuracy": pytest.approx(2 / 3),
            "inpainted_nats": 1.5,
            "true_nats": 1.75,
        }

    def test_files(self, tmp_path):
        filling_files.write(tmp_path, self.wanted, self.found, {"seed": 5})
        filling_files.draw(tmp_path, self.wanted, self.found, (2, 2), pytest.fail)
        names = "holes.npy images.csv inpainted.npz right.png summary.json wrong.png"
        assert sorted(path.name for path in tmp_path.iterdir()) == names.split()
        again = holes.read(tmp_path / "holes.npy", 4)
        assert torch.equal(again.truth, self.wanted.truth)
        assert torch.equal(again.hidden, self.wanted.hidden)
        with np.load(tmp_path / "inpainted.npz") as arrays:
            assert np.array_equal(arrays["inpainted"], self.found.pixels)
            assert np.array_equal(arrays["true_nats"], self.found.true_nats)
        with (tmp_path / "images.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        wanted = {"image": 0, "holes": 2, "right": 1, "nats": 1.0, "true_nats": 1.5}
        assert {name: float(value) for name, value in rows[0].items()} == wanted
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert (summary["seed"], summary["exact_accuracy"]) == (5, 0.5)


class TestPicture:
    truth = torch.zeros(1, 28, 28)

    def _rows(self, hidden, filled):
        figure = figures.inpainted(self.truth, hidden, filled)
        return [np.asarray(panel.images[0].get_array()) for panel in figure.axes]

    def test_small_holes_are_shown_close_up_before_after_and_as_they_are(self):
        hidden = torch.zeros(1, 28, 28, dtype=torch.bool)
        hidden[0, 26, 10:12] = True
        filled = self.truth.clone()
        filled[0, 26, 11] = 1
        before, after, true = self._rows(hidden, filled)
        assert before.shape == (figures.CLOSE, figures.CLOSE, 3)
        assert (before == np.array(figures.HIDDEN, np.float32)).all(2).sum() == 2
        assert (after == np.array(figures.FILLED[0], np.float32)).all(2).sum() == 1  # right, 0
        assert (after == np.array(figures.WRONG[1], np.float32)).all(2).sum() == 1  # wrong, 1
        assert not true.any()

    def test_large_holes_are_shown_in_whole_images(self):
        hidden = torch.zeros(1, 28, 28, dtype=torch.bool)
        hidden[0, 2:26, 5] = True
        assert self._rows(hidden, self.truth)[0].shape == (28, 28, 3)
