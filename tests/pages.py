"""Pages of ``fastrnn demo``, in a real Chromium without a window."""

import contextlib
import os
import shutil

import pytest
import torch
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from fastrnn import tasks
from fastrnn.tasks import data, demo
from fastrnn.tasks.config import PixelConfig

PREDICTION, CLASSIFICATION, INPAINTING = "pixel-prediction", "classification", "inpainting"
PATIENCE = 120  # seconds that a script may take where other tests keep the processors busy
TEST = {"accuracy": 0.9764, "loss": 54.813}


@contextlib.contextmanager
def chromium():
    """The browser, driven by its own driver."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        remedy = "the page is tested in Chromium: apt-get install chromium chromium-driver"
        if os.environ.get("FASTRNN_REQUIRE_NATIVE", "0") != "0":
            pytest.fail(remedy)
        pytest.skip(remedy)
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for each in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,1000"):
        options.add_argument(f"--{each}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=programs[1])
    with webdriver.Chrome(options=options, service=service) as driver:
        driver.set_script_timeout(PATIENCE)
        yield driver


@contextlib.contextmanager
def opener(browser, folder):
    """What opens a page and waits until it has done its work; a line on the console is an error."""

    def opened(content, *, calm=True, scheme="light", wait=True):
        path = folder / "page.html"
        path.write_bytes(content)
        features = [
            {"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"},
            {"name": "prefers-color-scheme", "value": scheme},
        ]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(path.as_uri())
        if wait:
            settled(browser)
        return browser

    yield opened
    assert browser.get_log("browser") == []
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def settled(browser):
    """Waits until the model has done what it was last asked for."""
    main = browser.find_element(By.TAG_NAME, "main")
    WebDriverWait(browser, PATIENCE, 0.02).until(
        lambda _: main.get_attribute("aria-busy") == "false"
    )


def grown(task, cell="GRU", dataset=None, **settings):
    """An untrained model whose weights are as large as trained ones, its settings and its data."""
    settings = {"hidden_size": 7, "num_layers": 2, **settings}
    config = PixelConfig(dataset="digits", device="cpu", cell=cell, **settings)
    dataset = dataset or config.load_data()
    torch.manual_seed(1)
    model = tasks.get(task).model(config, dataset).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    return model, config, dataset


def page_of(task, *arguments, **settings):
    """A model and its page."""
    model, config, dataset = grown(task, *arguments, **settings)
    return model, dataset, demo.page(task, model, config, dataset, TEST)


def large(grey):
    """Random images of MNIST's size, under its name."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256 if grey else 2, (30, 784), generator=generator, dtype=torch.uint8)
    split = data.Split(pixels, torch.arange(30) % 10)
    return data.Dataset("mnist", 28, 28, 10, grey, split, split, split)
