"""The screens in a real browser: a whole session by keys, zoom, flicker, resuming, a second rater, a phone."""

import re
from contextlib import contextmanager
from pathlib import Path

import pytest

from srgym.runners.arena.votes import read_lines

pytestmark = pytest.mark.browser

_IMAGES = 'return [...document.querySelectorAll(".pane img")].map((image) => image.getAttribute("src"))'
_PLACES = 'return [...document.querySelectorAll(".pane img")].map((image) => image.style.transform)'


@pytest.fixture
def rater():
    pytest.importorskip("selenium")
    import arena_rater

    return arena_rater


@contextmanager
def opened(rater, url, **options):
    driver = rater.browser(**options)
    try:
        driver.get(url)
        yield driver
        troubles = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert not troubles
    finally:
        driver.quit()


def _scale(transform):
    return float(re.search(r"scale\(([\d.e-]+)\)", transform)[1])


def test_a_session_by_keys_zoom_flicker_resume_and_a_second_rater(make, start, rater):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    study = make(photographs=2, repeats=1, checks=1)  # 8 trials
    votes = study.folder / "votes.jsonl"
    process, port = start(study)
    url = f"http://127.0.0.1:{port}/"
    with opened(rater, url) as first:
        assert not first.find_element(By.ID, "start").is_enabled()  # before consent
        rater.agree(first)
        assert rater.wait_for(first, 0)

        before = first.execute_script(_PLACES)
        rater.press(first, "+")
        zoomed = first.execute_script(_PLACES)
        assert all(_scale(b) == pytest.approx(1.5 * _scale(a)) for a, b in zip(before, zoomed, strict=True))
        pane = first.find_element(By.CLASS_NAME, "pane")
        ActionChains(first).drag_and_drop_by_offset(pane, 60, 30).perform()
        moved = first.execute_script(_PLACES)
        assert moved != zoomed and moved[0] == moved[1]  # together
        ActionChains(first).key_down(Keys.SHIFT).send_keys(Keys.ARROW_LEFT).key_up(Keys.SHIFT).perform()
        assert first.execute_script(_PLACES) != moved and not read_lines(votes)  # moves, and doesn't vote
        rater.press(first, "r")
        assert first.execute_script(_PLACES) == before

        images = first.execute_script(_IMAGES)
        ActionChains(first).key_down("q").perform()
        assert first.execute_script(_IMAGES) == images[::-1]
        rater.press(first, "f")  # not while what is left stands right
        ActionChains(first).key_up("q").key_down("l").perform()
        assert {address.split("/")[4] for address in first.execute_script(_IMAGES)} == {"lr"}
        ActionChains(first).key_up("l").perform()
        assert first.execute_script(_IMAGES) == images and not read_lines(votes)

        for number, key in enumerate(["f", Keys.ARROW_RIGHT, " "]):
            assert rater.wait_for(first, number)
            rater.press(first, key)
        assert rater.wait_for(first, 3)
        cast = read_lines(votes)
        assert [v["choice"] for v in cast] == [cast[0]["shown"][0], cast[1]["shown"][1], None]

        with opened(rater, url) as second:  # another person, at the same time
            rater.agree(second)
            assert rater.wait_for(second, 0)
            rater.press(second, "j")
            assert rater.wait_for(second, 1)
        code = first.find_element(By.ID, "own").text

        # The button, twice at once: it counts once.
        first.execute_script('const b = document.getElementById("choose-0"); b.click(); b.click();')
        assert rater.wait_for(first, 4)

        process.kill()
        process.wait()
        rater.press(first, "f")
        rater.WebDriverWait(first, 10).until(lambda d: "can't be reached" in d.find_element(By.ID, "alert").text)
        assert len(read_lines(votes)) == 5
        start(study, port)
        rater.press(first, "f")
        assert rater.wait_for(first, 5)
        with opened(rater, url) as elsewhere:  # the same person on another machine
            rater.WebDriverWait(elsewhere, 30).until(lambda d: d.find_element(By.TAG_NAME, "summary").is_displayed())
            elsewhere.find_element(By.TAG_NAME, "summary").click()
            elsewhere.find_element(By.ID, "code").send_keys(code)
            elsewhere.find_element(By.ID, "resume").click()
            for number, left in ((5, True), (6, True), (7, True), (8, False)):
                assert rater.wait_for(elsewhere, number) is left
                rater.press(elsewhere, "2")
        rater.press(first, "1")  # the old tab is behind, and learns of the end
        assert not rater.wait_for(first, 6)
        first.get_log("browser")  # the vote that couldn't be sent, and the one that was refused
    cast = read_lines(votes)
    assert [v["number"] for v in cast if v["rater"] == code] == list(range(8))
    assert len({v["rater"] for v in cast}) == 2


@pytest.mark.parametrize(("width", "height", "dark"), [(1400, 900, False), (400, 800, True)])
def test_the_best_of_three_beside_the_input_on_a_desk_and_on_a_phone(make, start, rater, tmp_path, width, height, dark):
    from selenium.webdriver.common.by import By

    study = make(photographs=1, together=3, lr="centred", repeats=0, checks=0, ties=False)
    _, port = start(study)
    with opened(rater, f"http://127.0.0.1:{port}/", width=width, height=height, dark=dark) as driver:
        rater.agree(driver)
        assert rater.wait_for(driver, 0)
        wide = driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width  # nothing to scroll to the side
        assert len(driver.find_elements(By.CLASS_NAME, "pane")) == 4
        assert not driver.find_elements(By.ID, "choose-tie")
        picture = Path(tmp_path / "page.png")
        driver.save_screenshot(str(picture))
        assert picture.stat().st_size > 1000
        rater.press(driver, " ")  # no answer here
        driver.find_element(By.ID, "choose-2").click()
        assert not rater.wait_for(driver, 1)
    (vote,) = read_lines(study.folder / "votes.jsonl")
    assert vote["choice"] == vote["shown"][2]
