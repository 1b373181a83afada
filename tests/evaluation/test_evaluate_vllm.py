"""The evaluation with the real vLLM, in process and on a server: the answers of the model that was named."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from evaluation_words import results, words

from grpo_ext.evaluation.subjects import subject_named
from grpo_ext.recipes.evaluate import main
from real_vllm import ENVIRONMENT, policy, save_tiny, served

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("models")
    base = save_tiny(folder / "tiny")
    policy(base).save_pretrained(folder / "adapter")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield [base, str(folder / "adapter")]


@pytest.fixture(scope="module")
def local(models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("local")
    assert main(words(*models, output=output)) == 0
    return output


def answers(output: Path, model: str) -> dict[tuple[int, int | None], str]:
    lines = (output / subject_named(model).label / "samples.jsonl").read_text().splitlines()[1:]
    return {(row["problem"], row["sample"]): row["text"] for row in map(json.loads, lines)}


def check_greedy(local: Path, output: Path, models: list[str]) -> None:
    """Greedy answers are those of transformers, and the two models differ; samples differ from each other."""
    for model in models:
        here, there = answers(local, model), answers(output, model)
        assert here.keys() == there.keys()
        assert all(there[place] == text for place, text in here.items() if place[1] is None)
        assert len(set(there.values())) > len(there) / 2
    one, other = (answers(output, model) for model in models)
    assert sum(one[place] != other[place] for place in one) > len(one) / 2


def test_an_engine_in_process(models: list[str], local: Path, tmp_path: Path) -> None:
    fields = {"engine": "vllm", "vllm_gpu_memory_utilization": 0.3, "batch_size": 16}
    output = tmp_path / "out"
    assert main(words(*models, output=output, **fields)) == 0
    check_greedy(local, output, models)
    # Half of the answers are lost: made again, they are the same
    found, before = results(output), {model: answers(output, model) for model in models}
    for path in output.glob("*/samples.jsonl"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    assert main(words(*models, output=output, **fields)) == 0
    assert {model: answers(output, model) for model in models} == before and results(output) == found


def test_servers(models: list[str], local: Path, tmp_path: Path) -> None:
    flags = ("--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "32")
    output = tmp_path / "out"
    with served(models[0], 1, tmp_path, *flags) as started:
        urls = [url for url, _ in started]
        assert main(words(*models, output=output, dtype=None, vllm_server_urls=urls)) == 0
        check_greedy(local, output, models)
        other = save_tiny(tmp_path / "another")
        with pytest.raises(ValueError, match=r"speaks .*tiny, and .* is .*another"):
            main(words(other, output=tmp_path / "refused", dtype=None, vllm_server_urls=urls))
