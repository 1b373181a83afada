"""What is taken out of commands and configs, and what is found in files all the same."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_hub import TOKEN
from grpo_ext.hub.private import (
    Private,
    leaks,
    private_words,
    public_command,
    public_json,
    without_token,
)

HOME, TMP = "/home" + "/alma_k", "/tmp"
HERE = Private(tokens=(TOKEN,), paths=(f"{HOME}/exp", HOME, TMP), names=("alma_k", "kiln-3"))
RECIPE = "python -m grpo_ext.recipes.gsm8k"


@pytest.mark.parametrize(
    ("command", "public"),
    [
        ("--config recipes/gsm8k/smollm2_cpu.yaml --seed 1", "--config recipes/gsm8k/smollm2_cpu.yaml --seed 1"),
        (f"--output_dir {HOME}/exp/r1 --beta 0.1", "--output_dir r1 --beta 0.1"),
        ("--output_dir=~/runs/r1", "--output_dir=r1"),
        ("--output_dir ../../runs/r1", "--output_dir r1"),
        ("--model_name_or_path /data/models/m7 --seed 1", "--model_name_or_path Q/m7 --seed 1"),
        ("--model_name_or_path=/data/models/m7", "--model_name_or_path=Q/m7"),
        (f"--push_to_hub --hub_token {TOKEN} --seed 1", "--seed 1"),
        (f"--hub_token={TOKEN} --hub_model_id alma_k/x --push_to_hub true --seed 1", "--seed 1"),
        ("--output_dir runs/alma_k-kiln-3", "--output_dir runs/_-_"),
        (f"--run_name {TOKEN}", "--run_name _"),
        ("--system_prompt 'be brief' --seed 1", "--system_prompt 'be brief' --seed 1"),
        ("--system_prompt 'don'\"'\"'t' --seed 1", "--system_prompt 'don'\"'\"'t' --seed 1"),
        ("--hub-token x --seed 1", "--seed 1"),
    ],
)
def test_commands(command: str, public: str) -> None:
    assert public_command(f"{RECIPE} {command}", "Q/m7", HERE) == f"{RECIPE} {public}"


WORDS = st.sampled_from(
    [
        "--output_dir", f"--output_dir={TMP}/a", f"{HOME}/exp", f"{HOME}/exp/x y", "--hub_token", TOKEN,
        f"--hub_token={TOKEN}", "--push_to_hub", "alma_k", "--run_name=kiln-3/alma_k", "--seed", "3", "~/x", "plain",
        f"--config={TMP}/{TOKEN}.yaml", "\\\\kiln-3\\share", f"--a=b={HOME}/q",
    ]
)  # fmt: skip


@given(st.lists(WORDS, max_size=8))
def test_no_command_gives_anything_away(words: list[str]) -> None:
    public = public_command(" ".join([RECIPE, *words]), "Q/m7", HERE).encode()
    assert leaks(public, HERE, prose=True) == []


def test_a_token_is_dropped_from_the_words_that_a_run_notes() -> None:
    words = ["--seed", "1", "--hub_token", TOKEN, "--push_to_hub", "--hub_model_id", "a/b"]
    assert without_token(words) == ["--seed", "1", "--push_to_hub", "--hub_model_id", "a/b"]
    assert without_token([f"--hub_token={TOKEN}", "--seed", "1"]) == ["--seed", "1"]


@pytest.mark.parametrize(
    ("content", "public"),
    [
        ({"name_or_path": "models/mine", "r": 4}, {"name_or_path": "Q/m7", "r": 4}),
        (
            {"base_model_name_or_path": "/data/m", "revision": None},
            {"base_model_name_or_path": "Q/m7", "revision": None},
        ),
        ({"a": {"vocab_file": f"{HOME}/v.txt", "b": [1, f"{TMP}/x", "</think>"]}}, {"a": {"b": [1, "</think>"]}}),
        ({"token": "/no_think", "eos": "</s>"}, {"token": "/no_think", "eos": "</s>"}),
        ({"chat_template": "see\n/data/x"}, {"chat_template": "see\n/data/x"}),
    ],
)
def test_configs(content: Any, public: Any) -> None:
    assert public_json(content, "Q/m7", HERE) == public


@pytest.mark.parametrize(
    ("text", "prose", "found"),
    [
        (f"x{TOKEN}", False, ["a token"]),
        ("hf_" + "z" * 34, False, ["a token"]),
        (f"{HOME}/q", False, ["a path of this machine"]),
        # Tokens of a vocabulary are no leak, and neither are addresses
        ('{"/tmp": 3, "alma_k": 4, "/home": 5}', False, []),
        ("see https://example.org/home" + "/page, ../work" + "/data and and/or", True, []),
        (f"{TMP}/x", True, ["a path of this machine"]),
        ("at /scratch/x", True, ["a local path (character 3)"]),
        ("C:\\" + "Users\\x", True, ["a local path (character 0)"]),
        ("by Alma_K", True, ["the name of this account or host"]),
        ("alma_kind is one word", True, []),
        ("alma_k/model is a repository", True, []),
    ],
)
def test_what_is_found(text: str, prose: bool, found: list[str]) -> None:
    assert leaks(text.encode(), HERE, public=("alma_k/model",), prose=prose) == found


def test_words_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "root")
    monkeypatch.setattr("socket.gethostname", lambda: "kiln-3.example.org")
    found = private_words(tmp_path, TOKEN, {"WANDB_API_KEY": "s3cret-value", "SHORT_KEY": "abc", "PATH": "/usr/bin"})
    assert set(found.tokens) == {TOKEN, "s3cret-value"}
    assert set(found.names) == {"kiln-3", "kiln-3.example.org"}
    assert {str(tmp_path), str(Path.cwd()), str(Path.home())} <= set(found.paths)
    lengths = [len(path) for path in found.paths]
    assert lengths == sorted(lengths, reverse=True)
