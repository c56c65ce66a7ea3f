"""``fastrnn demo``: the numbers that its page computes, the command, what the page costs."""

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from fastrnn import tasks
from fastrnn.tasks import data, demo, filling
from fastrnn.tasks.models import Classifier, Inpainter
from fastrnn.training.config import ConfigError
from tests import command
from tests.pages import (
    CLASSIFICATION,
    INPAINTING,
    PATIENCE,
    PREDICTION,
    TEST,
    grown,
    large,
    page_of,
)  # fmt: skip

FACE = Path(demo.__file__).parent / "page"


def check_numbers(model, dataset, browser):
    """Compares what the page computes on test images, up to 100, with the model in Python.

    The page computes in float64, so its logits are those of the model in float64. Rounding moves
    large logits in float32, but not what they mean: probabilities.
    """
    images = dataset.test.images[:100]
    hidden = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    holes = hidden.tolist() if isinstance(model, Inpainter) else None
    # As text: the driver is slow with long lists.
    script = (
        "const own = new model.constructor(run), [images, holes] = JSON.parse(arguments[0]);"
        "const logits = images.map((image, i) => own.logits(image, holes && holes[i]));"
        "return JSON.stringify(logits)"
    )
    text = browser.execute_script(script, json.dumps([images.tolist(), holes]))
    found = torch.tensor(json.loads(text), dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        own = copy.deepcopy(model).to(dtype)
        x = data.sequences(images, grey=False).to(dtype)
        x = x / 255 if dataset.grey else x
        with torch.no_grad():
            logits = own(x[:, :, 0], hidden.t()) if holes else own(x)
        if isinstance(model, Classifier):
            expected, as_shown = logits.double(), lambda each: each.softmax(1)
        else:
            expected, as_shown = logits.double().t(), torch.sigmoid
        assert expected.std() > 0.05
        if dtype == torch.float64:
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        agree(as_shown(found), as_shown(expected))


def agree(found, expected):
    torch.testing.assert_close(found, expected.to(found), rtol=0, atol=1e-4)


class TestNumbers:
    @pytest.mark.parametrize("cell", ["LSTM", "GRU", "GRU-RESET-BEFORE"])
    @pytest.mark.parametrize("task", tasks.NAMES)
    def test_on_100_images_are_pythons(self, show, task, cell):
        model, dataset, content = page_of(task, cell)
        check_numbers(model, dataset, show(content))

    @pytest.mark.parametrize(
        ("task", "grey"),
        [(PREDICTION, False), (CLASSIFICATION, False), (CLASSIFICATION, True), (INPAINTING, False)],
    )
    def test_on_images_of_mnists_size(self, show, task, grey):
        pixels = "grey" if grey else "binary"
        shape = {"hidden_size": 12, "num_layers": 1, "pixels": pixels}
        model, dataset, content = page_of(task, "LSTM", large(grey), **shape)
        check_numbers(model, dataset, show(content))

    def test_the_map_is_the_next_pixels_probability(self, show):
        """After the cut, it is the mean over the endings, each of which the model has drawn."""
        model, _, content = page_of(PREDICTION)
        browser = show(content)
        script = (
            "return [known, samples.map((s) => Array.from(s.image)), Array.from(expected, String)]"
        )
        known, samples, heat = browser.execute_script(script)
        images = torch.tensor(samples)
        assert len(images.unique(dim=0)) > 1
        assert len(images[:, :known].unique(dim=0)) == 1
        with torch.no_grad():
            chances = model(data.sequences(images, grey=False)).sigmoid().mean(1)
        assert heat[0] == "NaN"  # the first pixel is given
        agree(torch.tensor([float(chance) for chance in heat[1:]]), chances[:-1])
        shown = browser.find_element(By.ID, "percent").text
        assert shown == f"{chances[known - 1]:.1%}"

    def test_answers_after_each_row(self, show):
        model, _, content = page_of(CLASSIFICATION, pixels="grey")
        browser = show(content)
        image, found = browser.execute_script("return [Array.from(image), answers]")
        x = data.sequences(torch.tensor([image], dtype=torch.uint8), grey=True)
        with torch.no_grad():
            expected = [model(x[: 8 * rows])[0].softmax(0) for rows in range(1, 9)]
        agree(torch.tensor(found[1:]), torch.stack(expected))
        bars = [bar.text for bar in browser.find_elements(By.CSS_SELECTOR, ".bars output")]
        assert bars == [f"{share:.1%}" for share in expected[-1]]
        assert browser.find_element(By.ID, "verdict").text == str(int(expected[-1].argmax()))

    def test_holes_are_filled_as_python_fills_them(self, show):
        model, dataset, content = page_of(INPAINTING)
        browser = show(content)
        images = dataset.test.images[:30]
        hidden = torch.rand(images.shape, generator=torch.Generator().manual_seed(2)) < 0.3
        script = (
            "const [images, holes] = JSON.parse(arguments[0]);"
            "return JSON.stringify(images.map((truth, i) => {"
            "image.set(truth); hidden.set(holes[i]); finish(fill()); return Array.from(filled); }))"
        )
        given = json.dumps([images.tolist(), hidden.int().tolist()])
        found = json.loads(browser.execute_script(script, given))
        expected, _ = filling.from_both_sides(model, images, hidden)
        assert torch.equal(torch.tensor(found, dtype=torch.uint8), expected)
        assert not torch.equal(expected, images)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of pixel-prediction that has learnt something."""
    folder = tmp_path_factory.mktemp("runs") / "pixels"
    options = ["--dataset", "digits", "--hidden-size", 24, "--epochs", 2]
    assert command.run("train", PREDICTION, *options, "--out", folder) == 0
    return folder


class TestCommand:
    def test_writes_a_page_of_the_trained_model(self, fastrnn, show, trained, tmp_path):
        target = tmp_path / "new" / "page.html"
        status, out, err = fastrnn("demo", trained, "--out", target)
        assert (status, err) == (0, "")
        assert str(target) in out
        model = tasks.load(trained).module
        check_numbers(model, data.load("digits"), show(target.read_bytes()))

    def test_writes_into_the_run_and_again(self, fastrnn, trained):
        for _ in range(2):
            assert fastrnn("demo", trained)[0] == 0
        assert (trained / "demo.html").read_text().endswith("</html>\n")

    def test_measures_a_model_whose_run_is_not_finished(self, fastrnn, trained, tmp_path):
        pages = []
        for name in ("finished", "stopped"):
            run = tmp_path / name
            shutil.copytree(trained, run)
            if name == "stopped":
                (run / "summary.json").unlink()
            status, _, err = fastrnn("demo", run)
            assert status == 0, err
            pages.append((run / "demo.html").read_text().partition("</dl>")[0])
        assert pages[0] == pages[1]

    def test_a_folder_at_the_pages_place_is_an_error(self, fastrnn, trained, tmp_path):
        (tmp_path / "taken").mkdir()
        status, _, err = fastrnn("demo", trained, "--out", "taken")
        assert status == 2
        assert "taken is a folder; expected a file to write" in err

    def test_a_pipe_or_a_device_at_the_pages_place_stays(self, fastrnn, trained, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        status, _, err = fastrnn("demo", trained, "--out", "pipe")
        assert status == 2
        assert "pipe is a device or a pipe; expected the name of a file" in err
        assert (tmp_path / "pipe").is_fifo()

    def test_a_model_too_large_for_a_page_is_an_error(self):
        model, config, dataset = grown(PREDICTION, "LSTM", hidden_size=256)
        with pytest.raises(ConfigError, match=r"791,809 weights.*expected at most 2 MB"):
            demo.page(PREDICTION, model, config, dataset, TEST)


@pytest.fixture(scope="module")
def heaviest():
    """About the largest model that fits."""
    shape = {"hidden_size": 256, "num_layers": 1}
    return page_of(PREDICTION, "LSTM", large(grey=False), **shape)[2]


class TestPage:
    def test_needs_no_network_and_paints_at_once(self, show, heaviest):
        """In less than a second at best: other tests may keep the processors busy."""
        assert 1_000_000 < len(heaviest) < demo.MOST
        script = "return performance.getEntriesByType(arguments[0]).map((each) => each.startTime)"
        slowest = []  # paint of each load: the first one, and the first with content
        for _ in range(3):
            browser = show(heaviest, wait=False)
            paints = WebDriverWait(browser, PATIENCE, 0.02).until(
                lambda driver: len(found := driver.execute_script(script, "paint")) == 2 and found
            )
            assert browser.execute_script(script, "resource") == []
            slowest.append(max(paints))
        assert min(slowest) < 1000  # ms

    def test_stays_responsive_while_the_model_works(self, show, heaviest):
        """Frames go on, and new work replaces the old."""
        browser = show(heaviest, calm=False, wait=False)
        script = (
            "const done = arguments[0], busy = () => document.querySelector('main').ariaBusy;"
            "let frames = 0; known = 740; find('again').click(); const first = work.current;"
            "const count = () => { frames++;"
            "if (frames === 2) find('again').click();"
            "if (busy() === 'true') requestAnimationFrame(count);"
            "else done([frames, first !== work.current, drawn === run.pixels]); };"
            "requestAnimationFrame(count);"
        )
        frames, replaced, whole = browser.execute_async_script(script)
        assert frames > 4
        assert replaced
        assert whole

    def test_no_value_of_the_run_ends_the_script(self):
        assert "<" not in demo._run(*_run_arguments())

    @pytest.mark.parametrize("path", sorted(FACE.iterdir()), ids=lambda path: path.name)
    def test_no_part_is_too_long(self, path):
        assert len(path.read_text().splitlines()) <= 400


def _run_arguments():
    model, config, dataset = grown(CLASSIFICATION)
    return config, dataset, {"</script>": torch.zeros(1), **model.state_dict()}
