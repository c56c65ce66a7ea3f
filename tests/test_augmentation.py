"""Training images that are shifted and slanted at random."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from fastrnn import tasks
from fastrnn.tasks import augmentation, data
from fastrnn.tasks.config import PixelConfig

HEIGHT, WIDTH = 5, 4


def _pixels(text: str) -> torch.Tensor:
    """[P, 1, 1] of an image drawn with '#'."""
    return torch.tensor([float(c == "#") for c in text.replace(" ", "")]).reshape(-1, 1, 1)


def _moved(image: str, down: int, right: int, slant: int) -> torch.Tensor:
    moves = torch.tensor([[down], [right], [slant]])
    return augmentation.moved(_pixels(image), moves, HEIGHT, WIDTH)


class TestMoved:
    BAR = "..#. ..#. ..#. ..#. ...."

    @pytest.mark.parametrize(
        ("down", "right", "slant", "wanted"),
        [
            (0, 0, 0, BAR),
            (1, 0, 0, ".... ..#. ..#. ..#. ..#."),
            (2, 0, 0, ".... .... ..#. ..#. ..#."),
            (-1, 0, 0, "..#. ..#. ..#. .... ...."),
            (0, 1, 0, "...# ...# ...# ...# ...."),
            (0, -2, 0, "#... #... #... #... ...."),
            (0, 2, 0, ".... .... .... .... ...."),
            (0, 0, 1, "...# ..#. ..#. ..#. ...."),
            (0, 0, -2, "#... .#.. ..#. ...# ...."),
            (1, -1, -2, ".... #... .#.. ..#. ...#"),
        ],
    )
    def test_rows_move_and_the_ground_comes_in(self, down, right, slant, wanted):
        assert torch.equal(_moved(self.BAR, down, right, slant), _pixels(wanted))

    def test_each_image_of_a_batch_moves_alone(self):
        x = torch.rand(HEIGHT * WIDTH, 50, 1)
        moves = augmentation.moves(50, 2, 1)
        together = augmentation.moved(x, moves, HEIGHT, WIDTH)
        for k in range(50):
            alone = augmentation.moved(x[:, k : k + 1], moves[:, k : k + 1], HEIGHT, WIDTH)
            assert torch.equal(together[:, k : k + 1], alone)


class TestMoves:
    def test_every_distance_up_to_the_largest_is_drawn(self):
        down, right, slant = augmentation.moves(1000, 2, 3)
        assert set(down.tolist()) == set(right.tolist()) == {-2, -1, 0, 1, 2}
        assert set(slant.tolist()) == {-3, -2, -1, 0, 1, 2, 3}
        assert not torch.equal(down, right)

    def test_the_seed_decides(self):
        torch.manual_seed(3)
        first = augmentation.moves(20, 1, 2)
        assert not torch.equal(augmentation.moves(20, 1, 2), first)
        torch.manual_seed(3)
        assert torch.equal(augmentation.moves(20, 1, 2), first)


@pytest.mark.parametrize("name", tasks.NAMES)
class TestTasks:
    """What a task measures, seen through the inputs of its recurrent layers."""

    def _seen(self, name: str, *, training: bool, **settings) -> torch.Tensor:
        """The pixels that a model reads first, [P, B]."""
        task, config = tasks.get(name), PixelConfig(dataset="digits", device="cpu", **settings)
        whole = data.load("digits")
        model = task.model(config, whole).train(training)
        read: list[torch.Tensor] = []
        layer = next(m for m in model.modules() if isinstance(m, nn.RNNBase))
        layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0][:, :, 0]))
        torch.manual_seed(0)
        noise = task.noise(model, whole.train, 100, config)
        x, labels = task.batch(whole.train, torch.arange(100), config)
        metrics = task.measure(model, x, labels, config, noise)
        assert all(values.shape == (100,) for values in metrics.values())
        return read[0]

    def test_training_reads_moved_images(self, name):
        seen = self._seen(name, training=True, shift=2, slant=1)
        still = self._seen(name, training=True)
        assert (seen != still).any(0).float().mean() > 0.9
        # Moving loses ink at the sides; it makes none.
        assert 0.6 < seen.sum() / still.sum() <= 1.05

    def test_evaluation_reads_them_as_they_are(self, name):
        seen = self._seen(name, training=False, shift=2, slant=1)
        still = self._seen(name, training=False)
        assert torch.equal(seen, still)

    def test_images_that_would_leave_the_frame_are_refused(self, name):
        config = PixelConfig(dataset="digits")
        task, digits = tasks.get(name), data.image_format("digits", grey=False)
        task.model(dataclasses.replace(config, shift=3, slant=3), digits)
        for setting in ("shift", "slant"):
            changed: Any = {setting: 4}
            with pytest.raises(ValueError, match=f"{setting} is 4; expected 0 to 3 for images"):
                task.model(dataclasses.replace(config, **changed), digits)
