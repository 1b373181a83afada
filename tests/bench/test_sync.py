"""The sync benchmark: what is counted, and the bar of twenty times fewer bytes."""

import json

import pytest

from grpo_ext.bench.__main__ import main


@pytest.mark.slow
def test_the_adapter_is_a_twentieth_of_the_merged_weights(capfd: pytest.CaptureFixture[str]) -> None:
    assert main("sync --model smollm2-135m --device cpu --repeats 1".split()) == 0
    out = capfd.readouterr().out
    result = json.loads(out.splitlines()[-1])
    # Two bytes for each of the shape's weights, the tied head not counted again
    embedding, norms = 49152 * 576, 61 * 576
    layer = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536
    weights = embedding + 30 * layer + norms
    assert result["merged"]["bytes"] == 2 * weights
    rank_rows = 2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536)
    assert result["adapter"]["bytes"] == pytest.approx(2 * 30 * 16 * rank_rows, rel=0.01)
    assert result["byte_ratio"] > 20
    assert "megabytes a sync" in out and f"{result['byte_ratio']:.1f}x" in out


def test_no_adapter_is_named() -> None:
    with pytest.raises(ValueError, match="`--lora_r` is 0"):
        main(["sync", "--lora_r", "0"])
