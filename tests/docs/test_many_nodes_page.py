"""The sizes of the page follow from its formulas."""

import pytest
from many_nodes_sizes import MODELS, PAGE, Plan, filled, fits, plans


def test_the_tables_are_what_the_formulas_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == filled(text), "run `python tests/docs/many_nodes_sizes.py`"


def test_by_hand() -> None:
    seven, thirty_two = MODELS
    # Per layer: q and o 7168, k and v 4096, gate, up and down 22528 each
    assert seven.adapter == 32 * 28 * (2 * 7168 + 2 * 4096 + 3 * 22528) == 80_740_352
    assert thirty_two.adapter == 268_435_456
    assert (seven.cache, thirty_two.cache) == (57_344, 262_144)
    case = Plan(seven, "all weights", 8, 1024, 4, 4)
    assert case.training == pytest.approx(8 * 7.6e9 * 1024 * 1536 / (4 * 989e12 * 0.35))
    assert case.generating == pytest.approx(
        1024 * 1024 / 4 * (2 * 7.6e9 + 256 * 57_344 * 1024) / (256 * 3.35e12 * 0.5)
    )
    assert case.gradients == 64 * 3 * 0.75 * 2 * 7.6e9
    assert Plan(seven, "LoRA", 8, 1024, 4, 4).gradients == 2 * 0.75 * 4 * 80_740_352


def test_what_the_page_says_of_the_tables() -> None:
    lines = {(p.model.name, p.method, p.gpus, p.length): p for p in plans()}
    assert not fits(MODELS[1], "all weights", 4) and ("32B", "all weights", 8, 1024) not in lines
    assert all(p.seconds[p.first.split(",")[0]] / p.step < 0.06 for p in lines.values() if p.gpus == 8)
    for name in ("7B", "32B"):
        assert [round(m.weights / m.adapter) for m in MODELS] == [94, 122]
        short = lines[name, "all weights", 64, 1024]
        assert short.first.startswith("trainers") and short.seconds["trainers"] > short.step / 2
        assert lines[name, "LoRA", 512, 1024].first.startswith("shared folder")
    assert all(
        p.seconds["shared folder"] < 0.1 * p.step for p in lines.values() if p.method == "LoRA" and p.gpus == 64
    )
    assert max(4 * p.tokens for p in lines.values()) < 0.3e9
