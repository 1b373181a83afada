"""Uploads that are refused here or by the hub: names, tokens, files that must not leave, each in a sentence."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from finished_runs import EXPECTED, HOST, USER, prepared, target
from safetensors.torch import load_file, save_file

from fake_hub import TOKEN, FakeHub
from grpo_ext.hub.push import push_run
from grpo_ext.hub.run import read_run


def test_without_a_token(hub: FakeHub, run: Path) -> None:
    with pytest.raises(OSError, match=r"There is no token of the hub; log in with `hf auth login`, or set HF_TOKEN;"):
        push_run(run, target(token=None))
    assert hub.asked == [] and set(prepared(run)) == EXPECTED


def test_a_wrong_token(hub: FakeHub, ready: Path) -> None:
    with pytest.raises(OSError, match=r"does not accept the token \(401\)"):
        push_run(ready, target(token="hf_" + "x" * 30))


def test_somebody_elses_name(hub: FakeHub, ready: Path) -> None:
    with pytest.raises(OSError, match=r"The token may not write to 'stranger/model' \(403\)"):
        push_run(ready, target(repo_id="stranger/model"))


def test_metadata_that_the_hub_refuses(hub: FakeHub, ready: Path) -> None:
    card = ready / "to_push" / "README.md"
    card.write_text(card.read_text().replace("openai/gsm8k", "no such/data/set"))
    with pytest.raises(ValueError, match=r"Invalid metadata in README.md.*\"datasets\".*; everything is kept"):
        push_run(ready, target())
    assert hub.commits == []


@pytest.mark.parametrize("name", ["two words", "a/b/c", "-x", "a--b", "x.git"])
def test_a_name_that_the_hub_does_not_take(hub: FakeHub, ready: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"`repo_id` is '{name}', which the hub does not take"):
        push_run(ready, target(repo_id=name))
    assert hub.asked == []


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda run: run.rename(run.with_name("gone")), r"There is no run folder '.*first-try'"),
        (lambda run: (run / "summary.json").write_text("{"), "no readable summary.json"),
        (lambda run: (run / "adapter").rename(run / "other"), r"none of adapter/, model/, merged_16bit/"),
    ],
)
def test_no_finished_run(hub: FakeHub, run: Path, broken: Any, said: str) -> None:
    broken(run)
    with pytest.raises(OSError, match=said):
        push_run(run, target())


def test_a_run_that_trained_no_policy(hub: FakeHub, run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "dataset": None}))
    with pytest.raises(ValueError, match=r"is not the run of a policy, its summary.json names no `dataset`"):
        push_run(run, target())
    (run / "summary.json").write_text(json.dumps(summary))
    model = (run / "adapter").rename(run / "model")
    (model / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    with pytest.raises(ValueError, match="model' holds a LlamaForSequenceClassification, which generates no text"):
        push_run(run, target())
    assert hub.asked == [] and not (run / "to_push").exists()
    (model / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    assert read_run(run).kind == "model"


def test_pickled_weights_are_refused_by_name(hub: FakeHub, run: Path) -> None:
    (run / "adapter" / "adapter_model.safetensors").rename(run / "adapter" / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model.bin, which is a pickle; only safetensors are uploaded"):
        push_run(run, target())
    (run / "adapter" / "adapter_model.bin").rename(run / "adapter" / "adapter_model.safetensors")
    (run / "adapter" / "adapter_model.safetensors").write_bytes(pickle.dumps({"weight": [1.0]}))
    with pytest.raises(ValueError, match=r"adapter_model.safetensors' is no safetensors file"):
        push_run(run, target())
    assert hub.commits == []


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (TOKEN, "a token"),
        ("hf_" + "q" * 34, "a token"),
        (f"see /home/{USER}/notes", "path"),
        ("see /mnt/disk/notes", "a local path"),
        (f"by {USER}.", "the name of this account or host"),
        (f"on {HOST}", "the name of this account or host"),
    ],
)
def test_a_card_that_says_too_much_stays_here(hub: FakeHub, ready: Path, words: str, kind: str) -> None:
    card = ready / "to_push" / "README.md"
    card.write_text(card.read_text() + f"\n{words}\n")
    with pytest.raises(ValueError, match=f"README.md' holds .*{kind}.* nothing was uploaded") as caught:
        push_run(ready, target())
    assert words not in str(caught.value)
    assert hub.commits == []


def test_a_secret_in_weights_metadata_or_vocabulary_stays_here(hub: FakeHub, run: Path) -> None:
    path = run / "adapter" / "adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"by": TOKEN})
    with pytest.raises(ValueError, match=r"adapter_model.safetensors' holds a token"):
        push_run(run, target())
    save_file(load_file(path), path, metadata={"format": "pt"})
    template = run / "adapter" / "chat_template.jinja"
    template.write_text(template.read_text() + f"{{# {Path.cwd()} #}}")
    with pytest.raises(ValueError, match=r"chat_template.jinja' holds a path of this machine"):
        push_run(run, target(), reuse=False)
