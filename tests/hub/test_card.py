"""The model card: its metadata by the hub's rules, the formula of each preset, intervals, licence, code to load it."""

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from finished_runs import BASE, summary_of
from huggingface_hub import ModelCard, ModelCardData, constants

from fake_hub import FakeHub
from grpo_ext import presets
from grpo_ext.hub.card import metadata, model_card
from grpo_ext.hub.formula import FIELDS, PAPERS, first_sentence, formula
from grpo_ext.hub.private import Private
from grpo_ext.hub.run import SharedRun, hub_name, read_run
from grpo_ext.hub.scores import eval_results, table
from grpo_ext.hub.usage import QUESTION, messages_asked, served, usage
from grpo_ext.models import smollm2
from grpo_ext.ops.surrogates import SURROGATES
from grpo_ext.presets import PRESETS

NOBODY = Private((), (), ())
REPO = "orion-lab/first-try"


def run_with(folder: Path, rank: int = 4, license: dict[str, str] | None = None, **summary: Any) -> SharedRun:
    weights = folder / "adapter"
    weights.mkdir(parents=True, exist_ok=True)
    (weights / "adapter_config.json").write_text(json.dumps({"r": rank}))
    return SharedRun(folder, weights, summary_of(folder, BASE, **summary), BASE, BASE, license or {})


def card_of(run: SharedRun) -> str:
    return str(model_card(run, NOBODY, REPO, picture=True))


@pytest.fixture
def validated(hub: FakeHub) -> Iterator[FakeHub]:
    """Older clients send a card to the public hub's address whatever the endpoint is: led back to the stand-in."""
    session = huggingface_hub.get_session()
    there = type(session)().build_request("GET", hub.url).url

    def back(request: Any) -> None:
        request.url = request.url.copy_with(scheme=there.scheme, host=there.host, port=there.port)

    def factory() -> Any:
        return type(session)(event_hooks={"request": [back]})

    before = huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY
    huggingface_hub.set_client_factory(factory)
    yield hub
    huggingface_hub.set_client_factory(before)


def test_the_hubs_own_validation_takes_the_card(validated: FakeHub, tmp_path: Path) -> None:
    ModelCard(card_of(run_with(tmp_path))).validate()
    ModelCard(card_of(run_with(tmp_path, dataset="gsm8k+math", license={"license": "apache-2.0"}))).validate()
    assert validated.asked == ["validate"] * 2
    assert json.loads(validated.seen[0][1])["repoType"] == "model"
    # And would not take any
    for good, bad in (("type: openai/gsm8k", "type: a b"), (f"base_model: {BASE}", "base_model: /a/b/c")):
        card = card_of(run_with(tmp_path))
        assert good in card
        with pytest.raises(ValueError):
            ModelCard(card.replace(good, bad)).validate()


def test_the_metadata_come_back_as_they_were(tmp_path: Path) -> None:
    run = run_with(tmp_path)
    data = ModelCard(card_of(run)).data
    assert isinstance(data, ModelCardData)
    assert data.to_dict() == metadata(run, REPO).to_dict()
    assert data.eval_results == eval_results(run.summary)
    assert (data.base_model, data.base_model_relation, data.library_name) == (BASE, "adapter", "peft")
    assert data.tags == ["grpo", "trl", "grpo_ext", "lora"] and data.datasets == ["openai/gsm8k"]
    strict, lenient = data.eval_results or []
    assert (strict.dataset_type, strict.dataset_config, strict.dataset_split) == ("openai/gsm8k", "main", "test")
    assert (strict.metric_value, strict.metric_args["confidence_interval"]) == (0.5, [0.39, 0.61])
    assert strict.metric_args["before_training"] == 0.25 and lenient.metric_value == 0.5625


def test_the_table_has_both_ends_of_both_intervals(tmp_path: Path) -> None:
    card = card_of(run_with(tmp_path))
    assert "| GSM8K | 64 | strict | 25.0% [14.0%, 36.0%] | 50.0% [39.0%, 61.0%] |" in card
    assert "went from 25.0% to 50.0%" in card


def test_several_data_sets_and_one_without_an_end() -> None:
    one = {"accuracy": 0.5, "accuracy_interval": [0.2, 0.8], "problems": 10}
    summary = {"dataset": "gsm8k", "evaluations": {"gsm8k": {"before": one, "after": one}, "math": {"before": one}}}
    assert table(summary).splitlines()[-1] == "| MATH | 10 | strict | 50.0% [20.0%, 80.0%] | not measured |"
    assert [row.dataset_type for row in eval_results(summary)] == ["openai/gsm8k"]


def test_each_preset_has_its_paper_and_it_is_the_one_of_its_comments() -> None:
    assert list(PAPERS) == list(PRESETS)
    source = inspect.getsource(presets)
    assert all(paper[1] in source for paper in PAPERS.values() if paper is not None)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_presets_formula_has_the_sentences_of_its_rows(preset: str, tmp_path: Path) -> None:
    row = PRESETS[preset]
    text = " ".join(formula(row).split())
    surrogate = {"cispo": "cispo", "sapo": "soft", "vespo": "gamma"}.get(
        row.get("loss_type", ""), row.get("surrogate", "clip")
    )
    assert f"surrogate, {surrogate}: {first_sentence(SURROGATES[surrogate].loss)}" in text
    assert (f"+ {row['beta']:g} KL" in text) == (row.get("beta", 0.0) != 0.0)
    card = card_of(run_with(tmp_path, config=None, recipe={"preset": preset, "lora_r": 4}))
    paper = PAPERS[preset]
    assert f"Preset `{preset}`" in card and (paper is None or f"https://arxiv.org/abs/{paper[1]}" in card)
    assert "Differing from the preset" not in card


def test_the_formula_of_deepseekmath_in_full() -> None:
    text = formula(PRESETS["deepseekmath"])
    for part in (
        "A = (v − b) / s",
        "w = π / π_old",
        "L = aggregate(surrogate(w, A) + 0.04 KL)",
        "−min(w A, clip(w, 1−ε_low, 1+ε_high) A)",
        "ε_low = 0.2, ε_high = 0.2",
        "(1/R) Σ_i (1/|o_i|) Σ_t L_{i,t}",
        "k3 = e⁻ˣ − 1 + x ≥ 0",
    ):
        assert part in text, part
    in_reward = formula({"beta": 0.05, "kl_in": "reward", "kl_estimator": "k1"})
    assert "r ← r − 0.05 KL" in in_reward and "L = aggregate(surrogate(w, A))" in in_reward


def test_every_field_of_the_formula_is_one_of_the_config() -> None:
    from grpo_ext.config import GRPOExtConfig

    assert set(FIELDS) <= set(GRPOExtConfig.__dataclass_fields__)


def test_what_differs_from_the_preset_is_said(tmp_path: Path) -> None:
    card = card_of(run_with(tmp_path))
    assert "`beta=0.01`" in card and "Differing from the preset: `beta`." in card and "+ 0.01 KL" in card


def test_licence_of_the_base_from_its_own_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "base"
    base.mkdir()
    run = run_with(tmp_path / "run")
    summary = {**run.summary, "model": str(base)}
    (run.folder / "summary.json").write_text(json.dumps(summary))
    assert read_run(run.folder).license == {}
    assert "no licence" not in card_of(run) and "none is stated here" in card_of(run)
    assert "license" not in metadata(run, REPO).to_dict()

    said = "---\nlicense: other\nlicense_name: own-terms\nlicense_link: LICENSE\n---\n"
    (base / "README.md").write_text(said)
    found = read_run(run.folder, BASE)
    assert found.license == {"license": "other", "license_name": "own-terms", "license_link": "LICENSE"}
    assert metadata(found, REPO).to_dict()["license_name"] == "own-terms"
    assert "[own-terms](LICENSE), the licence of the base" in card_of(found)
    (base / "README.md").write_text("---\nlicense: [\n---\n")
    assert read_run(run.folder, BASE).license == {}

    # A base from the hub's cache
    cached = tmp_path / "cache" / "models--someone--tiny-base"
    (cached / "snapshots" / "1").mkdir(parents=True)
    (cached / "snapshots" / "1" / "README.md").write_text("---\nlicense: mit\n---\n")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (run.folder / "summary.json").write_text(json.dumps(run.summary))
    assert read_run(run.folder).license == {"license": "mit"}


def test_names_of_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert hub_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert hub_name("models/mine") is None and hub_name(str(tmp_path)) is None
    assert hub_name("/x/hub/models--Qwen--Qwen3-0.6B/snapshots/abc") == "Qwen/Qwen3-0.6B"


def test_an_adapters_base_is_what_it_was_trained_on(tmp_path: Path) -> None:
    """The adapter of a later stage does not fit the model that the first stage began with."""
    run = run_with(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps(run.summary))
    config = run.weights / "adapter_config.json"
    for named, base in ((str(tmp_path / "sft" / "model"), None), ("unsloth/tiny", "unsloth/tiny"), (None, BASE)):
        config.write_text(json.dumps({"r": 4, "base_model_name_or_path": named}))
        assert read_run(tmp_path).base == base
    config.write_text(json.dumps({"r": 4, "base_model_name_or_path": str(smollm2.cache_folder())}))
    assert read_run(tmp_path).base == smollm2.NAME
    assert read_run(tmp_path, "own/name").base == "own/name"


def test_a_run_on_preferences_has_no_accuracy_and_asks_for_no_format(tmp_path: Path) -> None:
    held_out = {"before": {"reward": 0.1}, "after": {"reward": 0.9}}
    run = run_with(tmp_path, dataset="builtin", recipe={"lora_r": 4}, evaluations=None, held_out=held_out)
    data, card = metadata(run, REPO).to_dict(), card_of(run)
    assert "model-index" not in data and "metrics" not in data and "## Evaluation" not in card
    assert messages_asked(run) == [{"role": "user", "content": QUESTION}]


def test_a_local_base_has_no_name_in_the_metadata(tmp_path: Path) -> None:
    run = run_with(tmp_path)
    local = SharedRun(run.folder, run.weights, run.summary, None, "my-base", {})
    card = card_of(local)
    assert "base_model" not in metadata(local, REPO).to_dict()
    assert "my-base, a model that is not on the hub" in card and "PATH_OF_THE_BASE" in card


@pytest.mark.parametrize(("rank", "served_rank"), [(4, 8), (16, 16), (24, 32)])
def test_code_blocks_name_the_weights_and_parse(tmp_path: Path, rank: int, served_rank: int) -> None:
    run = run_with(tmp_path, rank=rank)
    blocks = re.findall(r"```python\n(.*?)```", card_of(run), re.DOTALL)
    assert len(blocks) == 3 and list(usage(run, REPO)) == ["peft", "Unsloth", "vLLM"]
    for code in blocks:
        ast.parse(code)
        assert f'"{REPO}"' in code
    assert f"max_lora_rank={served_rank}," in blocks[2] or f"max_lora_rank={served_rank})" in blocks[2]
    assert f"--tokenizer {REPO} --enable-lora --max-lora-rank {served_rank} --lora-modules first-try={REPO}" in served(
        run, REPO
    )
