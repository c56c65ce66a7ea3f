"""fastrnn.tasks.load: a trained model in Python."""

import copy
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import fastrnn
from fastrnn import tasks
from fastrnn.tasks import data, filling, pixels
from fastrnn.training.config import ConfigError
from fastrnn.training.errors import RunError
from tests import made_runs

CLASSIFICATION, PREDICTION, INPAINTING = tasks.NAMES
SIDES = {"mnist": 28, "digits": 8}


@pytest.fixture
def load(tmp_path):
    """Makes and loads a run of a task."""
    numbers = itertools.count()

    def made(task, dataset="digits", **settings):
        folder = made_runs.make(tmp_path / f"run{next(numbers)}", task, dataset, **settings)
        return tasks.load(folder)

    return made


def _grey(dataset, count=6):
    """Grey images [count, H, W] uint8 with values on both sides of the threshold."""
    side = SIDES[dataset]
    drawn = torch.randint(0, 256, (count, side, side), generator=torch.Generator().manual_seed(1))
    return drawn.to(torch.uint8)


def _binary(dataset, count=6):
    return _grey(dataset, count) > 127


class TestImages:
    @pytest.mark.parametrize("dataset", SIDES)
    @pytest.mark.parametrize("grey", ["binary", "grey"])
    def test_every_form_of_the_same_images_gives_the_same(self, load, dataset, grey):
        model = load(CLASSIFICATION, dataset, pixels=grey)
        images = _grey(dataset)
        wanted = model.predict(images).probabilities
        assert wanted.shape == (6, 10)
        forms = {
            "numpy": images.numpy(),
            "other order": np.asfortranarray(images.numpy()),
            "read-only": np.frombuffer(images.numpy().tobytes(), np.uint8).reshape(images.shape),
            "int64": images.long(),
            "uint16": images.to(torch.uint16),
            "uint64": images.numpy().astype(np.uint64),
            "big-endian": images.numpy().astype(">i4"),
            "lists": images.tolist(),
            "float64": images.double() / 255,
            "float32": images.float() / 255,
            "flat": images.flatten(1),
        }
        for name, form in forms.items():
            found = model.predict(form).probabilities
            assert torch.allclose(found, wanted, atol=1e-6), name
        assert torch.equal(
            model.predict(images.view(2, 3, 1, *images.shape[1:])).labels.flatten(),
            model.predict(images).labels,
        )
        one = model.predict(Image.fromarray(images[0].numpy()))
        assert one.labels.shape == ()
        assert torch.allclose(one.probabilities, wanted[0], atol=1e-6)
        assert model.predict(images[:0]).probabilities.shape == (0, 10)

    @pytest.mark.parametrize(("dataset", "raw", "white"), [("mnist", 26, 255), ("digits", 8, 16)])
    def test_grey_becomes_binary_as_in_training(self, load, dataset, raw, white):
        model = load(PREDICTION, dataset)
        wanted = model.log_likelihood(_binary(dataset))
        ink = np.where(_binary(dataset), raw, raw - 1)  # just enough, and just too little
        for dtype in (np.float32, np.float64):
            assert torch.equal(model.log_likelihood((ink / white).astype(dtype)), wanted)
        assert torch.equal(model.log_likelihood((ink * 255 // white).astype(np.uint8)), wanted)

    def test_integers_up_to_1_are_binary(self, load):
        for model in (load(CLASSIFICATION), load(CLASSIFICATION, pixels="grey")):
            wanted = model.predict(_binary("digits")).probabilities
            assert torch.equal(model.predict(_binary("digits").int()).probabilities, wanted)

    @pytest.mark.parametrize(
        ("images", "error", "message"),
        [
            (np.zeros((28, 28)), ValueError, r"\[28, 28\] given; expected \[\.\.\., 8, 8\] or"),
            (np.zeros(63), ValueError, r"shape \[63\] given"),
            (np.float64(1), ValueError, r"shape \[\] given"),
            (np.full((8, 8), 16.0), ValueError, "16 given; expected 0 to 1: divide by"),
            (np.full((8, 8), np.nan), ValueError, "nan given"),
            (np.full((8, 8), -1), ValueError, "from -1 to -1 given; expected 0 to 255"),
            (np.full((8, 8), 256), ValueError, "256 given; expected 0 to 255"),
            (np.zeros((8, 8), complex), TypeError, "complex128 given; expected bool, integers"),
            (torch.zeros(8, 8, dtype=torch.complex64), TypeError, "complex64 given"),
            ("seven.png", TypeError, "expected bool, integers or floats"),
        ],
    )
    def test_others_are_refused(self, load, images, error, message):
        with pytest.raises(error, match=message):
            load(CLASSIFICATION).predict(images)


class TestClassification:
    @pytest.mark.parametrize("grey", ["binary", "grey"])
    def test_predicts_what_evaluate_counts(self, load, grey):
        model = load(CLASSIFICATION, pixels=grey)
        test = data.load("digits", grey=grey == "grey").test
        labels, probabilities = model.predict(test.images)
        x = data.sequences(test.images, grey=grey == "grey")
        assert torch.equal(labels, model.module(x).argmax(1))
        assert torch.allclose(probabilities.log(), model.module(x).log_softmax(1), atol=1e-5)
        assert not probabilities.requires_grad


class TestPixelPrediction:
    @pytest.mark.parametrize("cell", ["GRU", "LSTM", "GRU-RESET-BEFORE"])
    def test_log_likelihood_is_the_loss_negated(self, load, cell):
        model = load(PREDICTION, cell=cell, num_layers=2)
        images = _binary("digits")
        x = data.sequences(images.flatten(1).to(torch.uint8), grey=False)
        task = tasks.get(PREDICTION)
        loss = task.measure(model.module, x, torch.zeros(6), model.config, ())["loss"]
        found = model.log_likelihood(images.view(2, 3, 8, 8))
        assert found.dtype == torch.float64
        assert torch.allclose(found.flatten(), -loss.double(), rtol=1e-5)

    def test_completions_keep_the_known_pixels_and_ignore_the_others(self, load):
        model = load(PREDICTION)
        images = _binary("digits").view(3, 2, 8, 8)
        drawn = model.complete(images, 20, samples=4, seed=3)
        assert (drawn.shape, drawn.dtype) == ((3, 2, 4, 8, 8), torch.bool)
        flat = images.flatten(2)[:, :, None]
        assert (drawn.flatten(3)[..., :20] == flat[..., :20]).all()
        changed = images.flatten(2).clone()
        changed[..., 20:] ^= True
        assert torch.equal(model.complete(changed, 20, samples=4, seed=3), drawn)

    def test_completions_are_drawn_by_the_model_s_probabilities(self, load):
        model = load(PREDICTION)
        flat = _binary("digits").flatten(1).to(torch.uint8)
        uniforms = torch.rand(6, 2, 44, generator=torch.Generator().manual_seed(7))
        wanted, _ = pixels.sample(model.module, flat[:, :20], 44, uniforms)
        found = model.complete(flat, 20, samples=2, seed=7)
        assert torch.equal(found.flatten(2)[..., 20:], wanted.bool())

    def test_a_seed_repeats_and_a_generator_goes_on(self, load):
        model = load(PREDICTION)
        assert torch.equal(model.sample(4, seed=1), model.sample(4, seed=1))
        assert not torch.equal(model.sample(4, seed=1), model.sample(4, seed=2))
        generator = torch.Generator().manual_seed(1)
        first, second = (model.sample(4, seed=generator) for _ in range(2))
        assert torch.equal(first, model.sample(4, seed=1))
        assert not torch.equal(first, second)

    def test_samples_are_whole_images_that_start_blank(self, load):
        drawn = load(PREDICTION, "mnist").sample(3)
        assert (drawn.shape, drawn.dtype) == ((3, 28, 28), torch.bool)
        assert not drawn[:, 0, 0].any()
        assert drawn.any()

    def test_all_pixels_may_be_known(self, load):
        images = _binary("digits")
        assert torch.equal(load(PREDICTION).complete(images, 64)[:, 0], images)

    @pytest.mark.parametrize(
        ("known", "samples", "message"),
        [(0, 1, "known is 0; expected 1 to 64"), (65, 1, "known is 65"), (9, -1, "samples is -1")],
    )
    def test_wrong_numbers_are_refused(self, load, known, samples, message):
        with pytest.raises(ValueError, match=message):
            load(PREDICTION).complete(_binary("digits"), known, samples=samples)

    def test_filling_finds_the_likeliest(self, load):
        model = load(PREDICTION)
        images = _binary("digits")
        hidden = torch.zeros(8, 8, dtype=torch.bool)
        hidden[3, 2] = hidden[3, 5] = hidden[6, 1] = True
        filled, nats = model.fill(images, hidden)
        ways = torch.tensor(list(itertools.product([False, True], repeat=3)))
        every = images[:, None].repeat(1, 8, 1, 1)
        every[:, :, hidden] = ways
        likelihood, best = model.log_likelihood(every).max(1)
        assert torch.equal(filled, every[torch.arange(6), best])
        assert torch.allclose(nats, -likelihood)
        assert not torch.equal(filled, images)
        narrow = model.fill(images, hidden, width=1).nats
        assert (narrow >= nats).all()
        with pytest.raises(ValueError, match="width is 0"):
            model.fill(images, hidden, width=0)


class TestFilling:
    @pytest.mark.parametrize("task", [PREDICTION, INPAINTING])
    def test_masks_of_one_s_own(self, load, task):
        model = load(task)
        images = _binary("digits").view(2, 3, 8, 8)
        hidden = torch.zeros_like(images)
        hidden[0, 1, 2, 2:5] = hidden[1, 0, 0, 0] = hidden[1, 2, 7, 7] = True  # 0, 1 or 3 pixels
        filled, nats = model.fill(images, hidden)
        assert (filled.shape, nats.shape) == (images.shape, (2, 3))
        assert torch.equal(filled[~hidden], images[~hidden])
        again = model.fill((images ^ hidden).numpy(), hidden.flatten(2).numpy())
        assert torch.equal(again.images, filled)  # hidden values do not matter
        assert torch.allclose(again.nats, nats)
        one = model.fill(images[0, 1], hidden[0, 1])
        assert torch.equal(one.images, filled[0, 1])
        assert torch.allclose(one.nats, nats[0, 1])

    def test_from_both_sides(self, load):
        model = load(INPAINTING)
        images = _binary("digits")
        hidden = torch.zeros(8, 8, dtype=torch.bool)
        hidden[2:4, 3:5] = True
        flat = images.flatten(1).to(torch.uint8)
        mask = hidden.flatten().expand(6, -1)
        wanted, nats = filling.from_both_sides(model.module, flat, mask)
        found = model.fill(images, hidden)
        assert torch.equal(found.images.flatten(1), wanted.bool())
        assert torch.equal(found.nats, nats)

    @pytest.mark.parametrize(
        ("hidden", "error", "message"),
        [
            (np.zeros((8, 8)), TypeError, "float64 given; expected bool, True where"),
            (np.zeros((7, 8), bool), ValueError, r"hidden: shape \[7, 8\] given"),
            (np.zeros((5, 8, 8), bool), ValueError, r"does not fit images of leading shape \[6\]"),
        ],
    )
    def test_other_masks_are_refused(self, load, hidden, error, message):
        with pytest.raises(error, match=message):
            load(INPAINTING).fill(_binary("digits"), hidden)


@pytest.mark.parametrize(
    ("task", "method", "arguments", "others"),
    [
        (PREDICTION, "predict", (0,), "classification"),
        (CLASSIFICATION, "log_likelihood", (0,), "pixel-prediction"),
        (INPAINTING, "sample", (), "pixel-prediction"),
        (CLASSIFICATION, "complete", (0, 1), "pixel-prediction"),
        (CLASSIFICATION, "fill", (0, 0), "pixel-prediction or inpainting"),
    ],
)
def test_what_a_task_lacks_is_refused(load, task, method, arguments, others):
    message = rf"is a run of {task}, which has no {method}\(\): load a run of {others}$"
    with pytest.raises(RunError, match=message):
        getattr(load(task), method)(*arguments)


def _answers(folders):
    """What loaded runs of the three tasks answer."""
    classifier, pixel_model, painter = map(tasks.load, folders)
    images = _binary("digits").cpu()
    hidden = torch.zeros(8, 8, dtype=torch.bool, device="cpu")
    hidden[2:4, 2:4] = True
    return [
        *classifier.predict(images),
        pixel_model.log_likelihood(images),
        pixel_model.sample(3, seed=np.int64(1)),
        pixel_model.complete(images, 20),
        *pixel_model.fill(images, hidden),
        *painter.fill(images, hidden),
    ]


@pytest.fixture
def folders(load):
    return [load(task).run for task in (CLASSIFICATION, PREDICTION, INPAINTING)]


def test_torchs_defaults_of_the_program_change_nothing(folders):
    wanted = _answers(folders)
    torch.set_default_dtype(torch.float64)
    try:
        found = _answers(folders)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, wanted))
    images = _binary("digits")
    with torch.device("meta"):
        drawn = tasks.load(folders[1]).sample(3, seed=1)
        labels = tasks.load(folders[0]).predict(images).labels
    assert torch.equal(drawn, wanted[3])
    assert torch.equal(labels, wanted[0])


def test_every_task_answers_under_autocast(folders):
    wanted = _answers(folders)
    with torch.autocast("cpu", torch.bfloat16):
        found = _answers(folders)
    assert [answer.shape for answer in found] == [answer.shape for answer in wanted]
    assert torch.allclose(found[1].float(), wanted[1], atol=0.02)


class _Plain(nn.Module):
    """A model of torch.nn's own layers with the names of ours."""

    def __init__(self, cell, head):
        super().__init__()
        self.recurrent = getattr(nn, cell)(1, 5, 2)
        self.head = head


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_weights_load_into_plain_torch_by_name(load, cell):
    images = _binary("digits").flatten(1)
    x = images.t()[:, :, None].float()
    model = load(CLASSIFICATION, cell=cell, num_layers=2)
    plain = _Plain(cell, nn.Sequential(nn.Linear(5, 100), nn.ReLU(), nn.Linear(100, 10)))
    plain.load_state_dict(load_file(model.run / "checkpoints" / "best.safetensors"))
    logits = plain.head(plain.recurrent(x)[0][-1])
    assert torch.allclose(model.module(x), logits, rtol=1e-5, atol=1e-5)
    assert torch.allclose(model.predict(images).probabilities, logits.softmax(1), atol=1e-5)

    model = load(PREDICTION, cell=cell, num_layers=2)
    plain = _Plain(cell, nn.Linear(5, 1))
    plain.load_state_dict(model.module.state_dict())
    logits = plain.head(plain.recurrent(x)[0])[..., 0]
    assert torch.allclose(model.module(x), logits, rtol=1e-5, atol=1e-5)


def test_an_in_painter_reverts_to_plain_torch(load):
    model = load(INPAINTING)
    plain = fastrnn.revert(copy.deepcopy(model.module))
    assert type(plain.before) is type(plain.after) is nn.GRU
    x = _binary("digits").flatten(1).t().float()
    hidden = _binary("digits").flip(0).flatten(1).t()
    assert torch.allclose(model.module(x, hidden), plain(x, hidden), rtol=1e-5, atol=1e-5)


class TestRuns:
    def test_needs_no_data(self, load, tmp_path, monkeypatch):
        monkeypatch.setenv("FASTRNN_DATA", str(tmp_path / "none"))
        model = load(CLASSIFICATION, "mnist", data_dir=str(tmp_path / "none"))
        assert model.predict(_grey("mnist")).labels.shape == (6,)
        assert repr(model).startswith("<classification of mnist, 28 x 28 binary pixels: GRU 1 x 5")

    def test_a_backend_that_trained_elsewhere_is_not_needed(self, load):
        model = load(CLASSIFICATION, backend="cuda")
        with fastrnn.backend("reference"):
            wanted = model.predict(_binary("digits")).probabilities
        assert torch.allclose(model.predict(_binary("digits")).probabilities, wanted, atol=1e-5)

    def test_is_in_evaluation_mode_on_the_device_asked_for(self, load):
        model = load(CLASSIFICATION, input_dropout=0.5)
        assert not model.module.training
        assert tasks.load(model.run, device=torch.device("cpu")).device.type == "cpu"
        with pytest.raises(ConfigError, match="expected auto, cpu, cuda or cuda:N"):
            tasks.load(model.run, device="tpu")
        if not torch.cuda.is_available():
            with pytest.raises(ConfigError, match="torch sees no GPU; use cpu"):
                tasks.load(str(model.run), device="cuda")

    @pytest.mark.skipif(torch.cuda.device_count() > 9, reason="has the tenth GPU")
    def test_a_device_that_is_gone_is_a_warning_to_the_caller(self, tmp_path):
        folder = made_runs.make(tmp_path / "run", CLASSIFICATION, device="cuda:9")
        with pytest.warns(UserWarning, match="the run goes on with what is there") as caught:
            tasks.load(folder)
        assert caught[0].filename == __file__

    def test_damage_is_named(self, load, tmp_path):
        folder = load(CLASSIFICATION).run
        with pytest.raises(RunError, match="none does not exist"):
            tasks.load(tmp_path / "none")
        best = folder / "checkpoints" / "best.safetensors"
        whole = best.read_bytes()
        best.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(RunError, match="SHA-256 differs"):
            tasks.load(folder)
        best.unlink()
        with pytest.raises(RunError, match="has not finished its first epoch"):
            tasks.load(folder)
        best.write_bytes(whole)
        (folder / "summary.json").write_text("{}")
        with pytest.warns(UserWarning, match="the best weights are whole and are used"):
            tasks.load(folder)
        content = json.loads((folder / "config.json").read_text())
        content["settings"]["dataset"] = "auto"
        (folder / "config.json").write_text(json.dumps(content))
        with pytest.raises(RunError, match=r"config.json is damaged \(unknown dataset 'auto'"):
            tasks.load(folder)


def test_importing_the_layers_does_not_import_the_tasks():
    script = (
        "import sys, fastrnn; print(*(name for name in sys.modules if 'fastrnn.tasks' in name))"
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.split() == []
