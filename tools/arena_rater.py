"""Simulated raters in a real browser.

    python tools/arena_rater.py http://127.0.0.1:8020/ --raters 2 --screenshot arena.png

Each opens the page of `srgym arena serve`, agrees, and votes by the keyboard. A rater sees what a person sees, the
pixels on the page, and prefers the image of more variation from pixel to pixel, with noise of their own. For trying a
study out before people do, and for the documentation's pictures; such votes say nothing of what people prefer.

Needs Chromium and its driver (apt install chromium chromium-driver) and Selenium (pip install selenium).
"""

import argparse
import random
import shutil
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

# Mean absolute difference of neighbours in each pane's image, of 255.
_VARIATION = """
return [...document.querySelectorAll(".pane")].filter((pane) => pane.dataset.name !== "Input").map((pane) => {
  const image = pane.querySelector("img"), canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
  const paper = canvas.getContext("2d");
  paper.drawImage(image, 0, 0);
  const { data, width } = paper.getImageData(0, 0, canvas.width, canvas.height);
  let sum = 0;
  for (let i = 4; i < data.length; i += 4) if ((i / 4) % width) sum += Math.abs(data[i + 1] - data[i - 3]);
  return sum / (data.length / 4);
});
"""


def browser(width: int = 1400, height: int = 900, dark: bool = False) -> webdriver.Chrome:
    """A Chromium without a window, in a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    return driver


def press(driver: Any, key: str) -> None:
    ActionChains(driver).send_keys(key).perform()


def agree(driver: Any) -> None:
    """From the page of consent to the first trial."""
    WebDriverWait(driver, 30).until(lambda d: d.find_element(By.ID, "agreed").is_displayed())
    driver.find_element(By.ID, "agreed").click()
    driver.find_element(By.ID, "start").click()


def wait_for(driver: Any, number: int) -> bool:
    """Until trial `number` can be voted on: True; or the study is over: False."""

    def there(d: Any) -> str:
        over = d.find_element(By.ID, "done").is_displayed()
        return (
            "over"
            if over
            else "ready" * (d.find_element(By.TAG_NAME, "body").get_attribute("data-ready") == str(number))
        )

    ready = WebDriverWait(driver, 30, 0.02).until(there) == "ready"
    if ready:
        driver.execute_async_script(
            "setTimeout(arguments[0], 350)"
        )  # the page takes an earlier key for the last trial's
    return ready


def rate(driver: Any, chance: random.Random, noise: float, screenshot: Path | None = None) -> int:
    """Vote until the study is over. Returns how many votes it took."""
    number = 0
    while wait_for(driver, number):
        if screenshot is not None and number == 0:
            driver.save_screenshot(str(screenshot))
        seen = [value + chance.gauss(0, noise) for value in driver.execute_script(_VARIATION)]
        press(driver, str(seen.index(max(seen)) + 1))
        number += 1
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--raters", type=int, default=2)
    parser.add_argument("--noise", type=float, default=0.2, help="of what a rater sees, in grey levels")
    parser.add_argument("--size", type=int, nargs=2, default=(1400, 900), help="of the page, width and height")
    parser.add_argument("--screenshot", type=Path, help="a PNG of the first rater's first trial")
    arguments = parser.parse_args()
    for rater in range(arguments.raters):
        driver = browser(*arguments.size)
        try:
            driver.get(arguments.url)
            agree(driver)
            picture = arguments.screenshot if rater == 0 else None
            print(
                f"rater {rater + 1}: {rate(driver, random.Random(rater), arguments.noise, picture)} votes", flush=True
            )
        finally:
            driver.quit()


if __name__ == "__main__":
    main()
