"""The in-painting task: what is hidden, what the model may read, its figures, what it reaches."""

import json

import pytest
import torch
from torch.nn import functional

from fastrnn.tasks import data, inpainting
from fastrnn.tasks.config import PixelConfig
from fastrnn.tasks.inpainting import TASK
from fastrnn.tasks.models import Inpainter
from fastrnn.training.config import ConfigError
from tests import oracle

HEIGHT, WIDTH = 4, 5
CONFIG = PixelConfig(dataset="digits", device="cpu")


@pytest.fixture(params=oracle.CELLS)
def model(request):
    torch.manual_seed(0)
    return Inpainter(HEIGHT, WIDTH, request.param, 6, 1, initialisation="tensorflow").eval()


def _pixels(count):
    return (torch.rand(HEIGHT * WIDTH, count) < 0.4).float()


class TestModel:
    def test_does_not_read_hidden_pixels(self, model):
        x = _pixels(30)
        hidden = torch.rand(HEIGHT * WIDTH, 30) < 0.3
        assert torch.equal(model(x, hidden), model(torch.where(hidden, 1 - x, x), hidden))

    @pytest.mark.parametrize("place", range(HEIGHT * WIDTH))
    def test_reads_each_other_pixel_and_that_one_is_hidden(self, model, place):
        """From any place, on both sides of the hole."""
        x, hidden = _pixels(1), torch.zeros(HEIGHT * WIDTH, 1, dtype=torch.bool)
        hidden[9] = True
        other, also = x.clone(), hidden.clone()
        other[place] = 1 - other[place]
        also[place] = True
        wanted = model(x, hidden)[9]
        assert (model(other, hidden)[9] == wanted).all() == (place == 9)
        assert (model(x, also)[9] == wanted).all() == (place == 9)

    def test_a_known_pixel_has_the_logit_that_it_would_have_hidden(self, model):
        x, nothing = _pixels(30), torch.zeros(HEIGHT * WIDTH, 30, dtype=torch.bool)
        known = model(x, nothing, wanted=~nothing)
        for place in range(HEIGHT * WIDTH):
            hidden = nothing.clone()
            hidden[place] = True
            torch.testing.assert_close(model(x, hidden)[place], known[place])

    def test_sees_the_square_around_a_pixel(self):
        model = Inpainter(8, 12, "GRU", 6, 1)
        seen = torch.rand(8 * 12, 3, 2)
        places, images = [0, 31, 95], [2, 0, 1]
        found = model._around(seen, torch.tensor(places), torch.tensor(images)).view(3, 24, 2)
        for n, (place, image) in enumerate(zip(places, images, strict=True)):
            row, column = divmod(place, 12)
            wanted = []
            for r in range(row - 2, row + 3):
                for c in range(column - 2, column + 3):
                    inside = 0 <= r < 8 and 0 <= c < 12
                    wanted += [seen[r * 12 + c, image] if inside else torch.zeros(2)]
            del wanted[12]
            assert torch.equal(found[n], torch.stack(wanted))

    def test_has_a_logit_only_where_one_is_wanted(self, model):
        hidden, wanted = torch.rand(2, HEIGHT * WIDTH, 30) < 0.3
        assert torch.equal(model(_pixels(30), hidden) != 0, hidden)
        assert torch.equal(model(_pixels(30), hidden, wanted) != 0, wanted)


class TestPatches:
    def test_are_of_every_size_and_near_the_centre(self):
        torch.manual_seed(0)
        hidden = inpainting.patches(4000, 28, 28).view(28, 28, -1).permute(2, 0, 1)
        count = hidden.sum((1, 2))
        assert count.min() >= 1
        assert count.max() <= inpainting.PATCHES * 16
        share = hidden.double().mean(0)
        assert share[9:19, 9:19].mean() > 4 * share[:5].mean()
        assert share.any(0).all()  # in every row and column
        assert share.any(1).all()

    def test_fit_any_image(self):
        assert inpainting.patches(9, 4, 7).shape == (28, 9)


class TestFigures:
    def test_are_of_the_wanted_pixels(self, model):
        x = _pixels(7)
        torch.manual_seed(5)
        noise = TASK.noise(model, data.Split(x.t(), torch.zeros(7)), 7, CONFIG)
        found = TASK.measure(model, x[:, :, None], torch.zeros(7), CONFIG, noise)
        torch.manual_seed(5)
        hidden = inpainting.patches(7, HEIGHT, WIDTH)
        wanted = hidden | (torch.rand(x.shape) < inpainting.LEARNT)
        assert (wanted != hidden).any()
        logits = model(x, hidden, wanted)
        for i in range(7):
            for name, chosen, count in (
                ("hidden_loss", hidden[:, i], 1),
                ("loss", wanted[:, i], HEIGHT * WIDTH),
            ):
                mine, truth = logits[chosen, i], x[chosen, i]
                loss = functional.binary_cross_entropy_with_logits(mine, truth)
                torch.testing.assert_close(found[name][i], loss * count)
            right = ((logits[:, i] > 0) == (x[:, i] > 0))[hidden[:, i]].float().mean()
            torch.testing.assert_close(found["accuracy"][i], right)

    def test_grey_pixels_are_refused(self):
        with pytest.raises(ConfigError, match="drop --pixels"):
            TASK.model(PixelConfig(pixels="grey"), data.load("digits"))


def test_learns_the_bundled_digits(fastrnn, tmp_path):
    """68 % of the hidden pixels have the value that is the likelier one at their place."""
    status, _, err = fastrnn("train", "inpainting", "--dataset", "digits", "--out", "run")
    assert status == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test_accuracy"] >= 0.81
    assert (tmp_path / "run" / "examples.png").exists()
