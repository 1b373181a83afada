"""The table of tested versions says what the tests run on."""

from versions_page import PAGE, environments, page


def test_the_page_is_what_the_pins_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python tests/docs/versions_page.py`"


def test_both_hosts_and_their_span_are_in_it() -> None:
    columns = environments()
    assert {versions["trl"] for versions in columns.values()} >= {"1.15.0", "1.16.0"}
    line = next(line for line in page().splitlines() if line.startswith("| trl "))
    assert line.split(" | ")[1:4] == ["`>=1.15,<1.17`, `<=1.15.0` (unsloth)", "1.15.0", "1.16.0"]
