"""The page in a real browser, on a desktop and on a phone."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chromium import SIZES, opened
from made_runs import HOSTILE, make_hostile_run, make_run, summary

from grpo_ext.__main__ import main

pytestmark = pytest.mark.browser


def written(folder: Path, *others: Path) -> Path:
    page = folder.parent / "page.html"
    assert main(["report", str(folder), *map(str, others), "--output", str(page)]) == 0
    return page


def until(found: Callable[[], Any]) -> Any:
    """The first value that is true, for at most ten seconds."""
    end = time.monotonic() + 10
    while not (value := found()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


def complaints(chrome: Any) -> list[str]:
    return [entry["message"] for entry in chrome.get_log("browser") if entry["level"] != "INFO"]


def box(chrome: Any, selector: str) -> dict[str, float]:
    return chrome.execute_script(
        "const r = document.querySelector(arguments[0]).getBoundingClientRect();"
        "return {left: r.left, right: r.right, top: r.top, bottom: r.bottom, height: r.height}",
        selector,
    )


@pytest.mark.parametrize("device", SIZES)
def test_the_answer_is_on_the_first_screen(device: str, tmp_path: Path) -> None:
    width, height, _ = SIZES[device]
    with opened(written(make_run(tmp_path / "run")), device) as chrome:
        for selector in ("#headline", ".gain", ".word", ".curve.tall .main-svg"):
            place = box(chrome, selector)
            assert place["left"] >= 0 and place["right"] <= width + 0.5, selector
            assert place["top"] >= 0 and place["bottom"] <= height, selector
        assert "25.0 %" in chrome.find_element("id", "headline").text
        scroll = "return document.documentElement.scrollWidth"
        drawn = "return arguments[0].querySelector('.scatterlayer .js-line') !== null"
        assert chrome.execute_script(scroll) <= width
        # Every curve is drawn once it is looked at
        for place in chrome.execute_script("return [...document.querySelectorAll('.curve')]"):
            chrome.execute_script("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", place)
            assert until(lambda place=place: chrome.execute_script(drawn, place))
        assert chrome.execute_script(scroll) <= width
        assert complaints(chrome) == []


@pytest.mark.parametrize("device", SIZES)
def test_several_runs_and_a_legend(device: str, tmp_path: Path) -> None:
    other = make_run(tmp_path / "a_run_with_a_rather_long_name_that_does_not_fit", steps=12, summary=summary(0.1, 0.2))
    with opened(written(make_run(tmp_path / "run"), other), device) as chrome:
        width = SIZES[device][0]
        assert chrome.execute_script("return document.documentElement.scrollWidth") <= width
        lines = "return document.querySelectorAll('.curve.tall .scatterlayer .trace').length"
        before = chrome.execute_script(lines)
        chrome.find_elements("css selector", ".legend button")[1].click()
        assert until(lambda: chrome.execute_script(lines) < before)
        assert chrome.find_elements("css selector", ".legend button")[1].get_attribute("aria-pressed") == "false"
        assert complaints(chrome) == []


def test_completions_can_be_browsed(tmp_path: Path) -> None:
    with opened(written(make_run(tmp_path / "run"))) as chrome:

        def ranking() -> list[str]:
            return [row.text for row in chrome.find_elements("css selector", ".ranking tbody tr")]

        assert [text.split()[0::5] for text in ranking()] == [["1"], ["2"]] or len(ranking()) == 2
        assert "Step 24: 2 of 2 groups" in chrome.find_element("id", "kept").text
        chrome.find_element("id", "ex-back").click()
        assert "Step 1: 2 of 2 groups" in chrome.find_element("id", "kept").text
        chrome.find_element("id", "ex-find").send_keys("no such text")
        assert "Step 1: 0 of 2 groups" in chrome.find_element("id", "kept").text and ranking() == []
        assert complaints(chrome) == []


@pytest.mark.parametrize("device", SIZES)
def test_hostile_texts_do_nothing(device: str, tmp_path: Path) -> None:
    with opened(written(make_hostile_run(tmp_path / HOSTILE[1]), make_run(tmp_path / "other")), device) as chrome:
        chrome.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        for place in chrome.execute_script("return [...document.querySelectorAll('.curve, .group')]"):
            chrome.execute_script("arguments[0].scrollIntoView({behavior: 'instant'}); arguments[0].click()", place)
        time.sleep(0.5)
        assert chrome.execute_script("return window.broken") is None
        assert (
            chrome.execute_script("return document.querySelectorAll('img, iframe, main a:not([href^=\"#\"])').length")
            == 0
        )
        shown = chrome.find_element("tag name", "body").text
        assert HOSTILE[0] in shown and HOSTILE[1] in shown
        assert chrome.execute_script("return document.documentElement.scrollWidth") <= SIZES[device][0]
        assert complaints(chrome) == []


def test_a_script_from_elsewhere_would_be_refused(tmp_path: Path) -> None:
    page = written(make_run(tmp_path / "run"))
    page.write_text(page.read_text().replace("</main>", "<script>window.broken = 1</script></main>"))
    with opened(page) as chrome:
        assert chrome.execute_script("return window.broken") is None
        assert any("Content Security Policy" in text for text in complaints(chrome))
