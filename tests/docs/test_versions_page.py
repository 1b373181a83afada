"""The table of tested versions says what the tests run on."""

import tomllib

from packaging.version import Version
from versions_page import PAGE, ROOT, environments, page


def test_the_page_is_what_the_pins_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python tests/docs/versions_page.py`"


def test_each_host_and_its_span_are_in_it() -> None:
    pinned = sorted((path.stem.removeprefix("trl-") for path in (ROOT / ".ci").glob("trl-*.txt")), key=Version)
    assert len(pinned) > 1 and {versions["trl"] for versions in environments().values()} >= set(pinned)
    (line,) = [line for line in page().splitlines() if line.startswith("| trl ")]
    bound, lowest, newest = line.split(" | ")[1:4]
    assert (lowest, newest) == (pinned[0], pinned[-1])
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    (trl,) = [line.removeprefix("trl") for line in dependencies if line.startswith("trl>")]
    assert bound.startswith(f"`{trl}`, ")
