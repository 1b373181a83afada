"""Chromium without a screen, driven through its own driver: nothing is downloaded."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars "
    "--force-prefers-reduced-motion"
).split()
SIZES = {"desktop": (1280, 800, False), "phone": (390, 844, True)}


def programs() -> tuple[str, str]:
    """Paths of the browser and its driver, Debian's packages `chromium` and `chromium-driver`."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert browser and driver, "these tests open a page in a browser: apt-get install chromium chromium-driver"
    return browser, driver


@contextmanager
def opened(page: Path, device: str = "desktop") -> Iterator[Chrome]:
    """A page in a browser of its own, when its curves can be drawn."""
    browser, driver = programs()
    width, height, mobile = SIZES[device]
    options = ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for flag in [*FLAGS, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        chrome = Chrome(options=options, service=Service(driver))
        try:
            chrome.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile},
            )
            if mobile:
                chrome.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
            chrome.set_script_timeout(60)
            chrome.get(page.resolve().as_uri())
            chrome.execute_async_script(READY)
            yield chrome
        finally:
            chrome.quit()


# Answers when plotly.js runs and the first curve is on the screen.
READY = """
const done = arguments[0];
const look = () => document.documentElement.dataset.ready && document.querySelector(".curve .main-svg")
  ? done() : setTimeout(look, 50);
look();
"""
