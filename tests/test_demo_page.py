"""The page of ``fastrnn demo`` in use: by mouse, finger and keyboard, in every light and width."""

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions import interaction
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from fastrnn import tasks
from tests.pages import (
    CLASSIFICATION,
    INPAINTING,
    PREDICTION,
    page_of,
    settled,
)  # fmt: skip

PHONE = 360  # pixels that a small one is wide
MIDDLE = 8 * 4 + 4  # the pixel at which the board's cursor starts, on 8 x 8


class TestDrawing:
    """The board, in each of the ways to use it."""

    @pytest.fixture
    def board(self, show):
        """An empty board of 8 x 8 pixels, of which the model sees the first half."""
        browser = show(page_of(PREDICTION)[2])
        browser.find_element(By.ID, "clear").click()
        settled(browser)
        return browser.find_element(By.ID, "board")

    @staticmethod
    def ink(browser):
        settled(browser)
        found = browser.execute_script("return Array.from(image)")
        return {(pixel // 8, pixel % 8) for pixel, value in enumerate(found) if value}

    def test_by_mouse(self, browser, board):
        cell = board.size["width"] / 8
        chain = ActionChains(browser, duration=20)
        chain.move_to_element_with_offset(board, round(-2.5 * cell), round(-1.5 * cell))
        chain.click_and_hold().move_by_offset(round(4 * cell), 0).release().perform()
        assert self.ink(browser) == {(2, column) for column in range(1, 6)}
        chain.move_to_element_with_offset(board, round(-0.5 * cell), round(-1.5 * cell))
        chain.context_click().perform()
        assert self.ink(browser) == {(2, column) for column in (1, 2, 4, 5)}

    def test_by_touch(self, browser, board):
        finger = PointerInput(interaction.POINTER_TOUCH, "finger")
        actions = ActionBuilder(browser, mouse=finger, duration=20)
        box = board.rect
        cell = box["width"] / 8
        x, y = (round(box[axis] + 2.5 * cell) for axis in "xy")
        y -= browser.execute_script("return scrollY")
        actions.pointer_action.move_to_location(x, y).pointer_down()
        actions.pointer_action.move_to_location(x, round(y + 3 * cell)).pointer_up()
        actions.perform()
        assert self.ink(browser) == {(row, 2) for row in range(2, 6)}
        assert browser.execute_script("return scrollY") == 0  # the finger drew and did not scroll

    def test_by_keyboard(self, browser, board):
        browser.execute_script("document.activeElement.blur()")
        while browser.switch_to.active_element != board:
            ActionChains(browser).send_keys(Keys.TAB).perform()
        assert browser.execute_script("return document.activeElement.matches(':focus-visible')")
        keys = ActionChains(browser).send_keys(" ", Keys.ARROW_DOWN, Keys.ARROW_LEFT, " ")
        keys.key_down(Keys.SHIFT).send_keys(Keys.ARROW_UP, Keys.ARROW_UP).key_up(Keys.SHIFT)
        keys.send_keys(Keys.ARROW_DOWN, Keys.DELETE).perform()
        assert self.ink(browser) == {(4, 4), (5, 3), (3, 3)}
        status = browser.find_element(By.CSS_SELECTOR, ".board [role=status]")
        assert status.text == "Row 5, column 4: no ink"

    def test_every_control_is_reached_by_the_keyboard_and_has_a_name(self, browser, board):
        browser.execute_script("document.activeElement.blur()")
        reached = []
        while True:  # the first focus follows the last click; from the end, it goes to the start
            ActionChains(browser).send_keys(Keys.TAB).perform()
            if (element := browser.switch_to.active_element) in reached:
                break
            reached.append(element)
        radio = "input:not([type=radio])", "input:checked"
        wanted = browser.find_elements(By.CSS_SELECTOR, ", ".join(("button", "[tabindex]", *radio)))
        assert [each for each in wanted if each not in reached] == []
        pictures = browser.find_elements(By.CSS_SELECTOR, "[role=img]")
        assert len(pictures) == 13
        assert [each for each in [*wanted, *pictures] if not each.accessible_name] == []

    def test_erases_with_a_tool(self, browser, board):
        board.click()
        assert len(self.ink(browser)) == 1
        browser.find_element(By.XPATH, "//label[.='Erase']").click()
        board.click()
        assert self.ink(browser) == set()

    def test_a_digit_is_picked_and_the_cut_moved(self, browser, board):
        browser.find_element(By.CSS_SELECTOR, "[aria-label='Test digit 3']").click()
        assert len(self.ink(browser)) > 5
        seen, slider = (browser.find_element(By.ID, name) for name in ("seen", "known"))
        assert seen.text == "36 of 64 pixels"
        slider.send_keys(Keys.ARROW_RIGHT)
        settled(browser)
        assert seen.text == "37 of 64 pixels"

    def test_pixels_are_rubbed_out_and_brought_back(self, show):
        browser = show(page_of(INPAINTING)[2])
        done = browser.find_element(By.ID, "done")
        assert "of 4 pixels as they were" in done.text
        browser.find_element(By.ID, "clear").click()
        settled(browser)
        assert "Nothing is hidden" in done.text
        browser.find_element(By.ID, "board").send_keys(" ")
        settled(browser)
        assert browser.execute_script("return hidden.indexOf(1)") == MIDDLE
        assert "of 1 pixel as it was" in done.text

    def test_ink_is_moved_to_the_middle(self, show):
        browser = show(page_of(CLASSIFICATION)[2])
        script = "image.fill(0); image[10] = image[11] = 1; restart();"
        browser.execute_script(script)
        browser.find_element(By.ID, "centre").click()
        assert self.ink(browser) in ({(row, 3), (row, 4)} for row in (3, 4))

    def test_rows_are_read_one_by_one(self, show):
        browser = show(page_of(CLASSIFICATION)[2])
        browser.find_element(By.ID, "read").send_keys(Keys.HOME)
        seen, again = (browser.find_element(By.ID, name) for name in ("seen", "again"))
        assert seen.text == "0 of 8"
        again.click()
        settled(browser)
        assert seen.text == "8 of 8"


class TestLooks:
    @pytest.mark.parametrize("task", tasks.NAMES)
    def test_says_what_the_model_is(self, show, task):
        browser = show(page_of(task, "LSTM")[2])
        header = browser.find_element(By.TAG_NAME, "header").text
        figure = "54.81 nats per digit" if task == PREDICTION else "97.6% "
        for words in ("digits", "LSTM 2×7", "8×8", "300 test digits", figure):
            assert words in header

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("task", tasks.NAMES)
    def test_text_stands_out_in_light_and_dark(self, show, task, scheme):
        browser = show(page_of(task)[2], scheme=scheme)
        script = (
            "const style = getComputedStyle(document.documentElement);"
            "return arguments[0].map((name) => style.getPropertyValue(`--${name}`).trim())"
        )
        names = ["ground", "text", "quiet", "model", "paper", "ink"]
        bright = dict(
            zip(names, map(luminance, browser.execute_script(script, names)), strict=True)
        )
        assert (bright["ground"] > 0.5) == (scheme == "light")
        for on, name in (
            ("ground", "text"),
            ("ground", "quiet"),
            ("ground", "model"),
            ("paper", "ink"),
        ):
            low, high = sorted((bright[on], bright[name]))
            assert (high + 0.05) / (low + 0.05) > 4.5, f"{name} on {on}"

    def test_pictures_follow_the_colour_scheme(self, show):
        browser = show(page_of(PREDICTION)[2])
        script = "return [...document.querySelectorAll('canvas')].map((each) => each.toDataURL())"
        light = browser.execute_script(script)
        dark = {"name": "prefers-color-scheme", "value": "dark"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [dark]})
        WebDriverWait(browser, 5).until(
            lambda _: not set(light) & set(browser.execute_script(script))
        )

    @pytest.mark.parametrize("width", [PHONE, 768, 1280])
    @pytest.mark.parametrize("task", tasks.NAMES)
    def test_fits_the_width_of_a_screen(self, show, browser, task, width):
        screen = {"width": width, "height": 780, "deviceScaleFactor": 1, "mobile": width == PHONE}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        show(page_of(task)[2])
        assert browser.execute_script("return innerWidth") == width
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        script = (
            "return [...document.querySelectorAll('body *')].filter((e) => {"
            "const { left, right } = e.getBoundingClientRect();"
            "return left < -0.5 || right > innerWidth + 0.5 }).map((e) => e.outerHTML.slice(0, 80))"
        )
        assert browser.execute_script(script) == []


def luminance(colour):
    """WCAG's relative luminance of #rrggbb."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
