"""The folder that is uploaded: what may go, made fit to be seen, looked through before it goes."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from grpo_ext.files import digest_of_file
from grpo_ext.hub.card import CARD, PICTURE, write_card
from grpo_ext.hub.private import Private, is_local_path, leaks, private_words, public_json, without_names
from grpo_ext.hub.run import SharedRun
from grpo_ext.report import learning_curve, write_json

FOLDER = "to_push"
STATE = "push.json"
# In place of the owner, until the hub has said who that is
UNKNOWN_OWNER = "OWNER"

WEIGHTS = {
    "adapter": re.compile(r"adapter_model\.safetensors"),
    "model": re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors"),
}
# Rewritten where they name a place on this machine
CONFIGS = frozenset(
    {
        "adapter_config.json",
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "model.safetensors.index.json",
    }
)
# As they are: a vocabulary has tokens that look like anything
VOCABULARY = frozenset(
    {
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "added_tokens.json",
        "chat_template.jinja",
    }
)
# Of an adapter, a config.json would make it look like a whole model
ONLY_OF_MODELS = frozenset({"config.json", "generation_config.json", "model.safetensors.index.json"})
PROSE = frozenset({CARD}) | CONFIGS
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def prepare(run: SharedRun, repo_id: str, token: str | None = None) -> Path:
    """Make `to_push/` in the run's folder: weights, tokenizer, card and learning curve, and `push.json` beside them.

    Args:
        run: the run.
        repo_id: where it goes, "name" or "owner/name".
        token: the hub's, which nothing may contain.

    Returns:
        The folder; `push.json` names its files, and what of the weights' folder was left out.

    Raises:
        ValueError: there are no weights in safetensors, or a file says something private.
    """
    run, private = _public(run, token)
    folder = run.folder / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    left_out = _copy(run, folder, private)
    metrics = run.folder / "metrics.jsonl"
    if metrics.is_file():
        # Drawn anew: the run's own picture may have the model's folder as its title
        learning_curve(metrics, folder / PICTURE, f"{run.title}, {run.summary['dataset']}")
    named = repo_id if "/" in repo_id else f"{UNKNOWN_OWNER}/{repo_id}"
    card = write_card(run, private, named, folder)
    files = sorted(path.name for path in folder.iterdir())
    state = {
        "state": "prepared",
        "asked_for": repo_id,
        "repo_id": named,
        "base": run.base,
        "kind": run.kind,
        "card": digest_of_file(card),
        "summary": digest_of_file(run.folder / "summary.json"),
        "files": files,
        "left_out": left_out,
    }
    write_json(folder / STATE, state)
    return folder


def _copy(run: SharedRun, folder: Path, private: Private) -> list[str]:
    """Copy what may go into the folder, configs cleaned, and name the rest."""
    allowed = VOCABULARY | CONFIGS - (ONLY_OF_MODELS if run.kind == "adapter" else frozenset())
    left_out, weights = [], 0
    for path in sorted(run.weights.iterdir()):
        if WEIGHTS[run.kind].fullmatch(path.name):
            weights += 1
            shutil.copyfile(path, folder / path.name)
        elif path.name in CONFIGS & allowed:
            _copy_config(path, folder / path.name, run.title, private)
        elif path.name in VOCABULARY:
            shutil.copyfile(path, folder / path.name)
        elif path.name != CARD:
            left_out.append(path.name)
    if not weights:
        pickled = next((name for name in left_out if name.endswith(PICKLES)), None)
        found = f"{pickled}, which is a pickle" if pickled else "no weights"
        raise ValueError(
            f"{str(run.weights)!r} has {found}; only safetensors are uploaded, write them with `save_pretrained`."
        )
    return left_out


def _copy_config(source: Path, target: Path, title: str, private: Private) -> None:
    content = json.loads(source.read_text(encoding="utf-8"))
    cleaned = public_json(content, title, private)
    if cleaned == content:
        shutil.copyfile(source, target)
    else:
        target.write_text(json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_state(folder: Path) -> dict[str, Any] | None:
    """What `push.json` says.

    Args:
        folder: a `to_push/`.

    Returns:
        Its content, or None where there is none.
    """
    try:
        return json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def kept(folder: Path) -> dict[str, Any] | None:
    """The state of a prepared folder that is still to be uploaded, has all its files and is of the newest run.

    Args:
        folder: a `to_push/`.

    Returns:
        Its state, or None where it has to be prepared.
    """
    state = read_state(folder)
    if state is None or state.get("state") == "pushed" or not state.get("files"):
        return None
    same_run = state.get("summary") == digest_of_file(folder.parent / "summary.json")
    return state if same_run and all((folder / name).is_file() for name in state["files"]) else None


def rename(folder: Path, state: Mapping[str, Any], run: SharedRun, repo_id: str) -> dict[str, Any]:
    """Give the card the repository's full name, where it was written for another one.

    A card that its owner has rewritten keeps its words, and only the name is exchanged.

    Args:
        folder: a `to_push/`.
        state: its state.
        run: the run that it is of.
        repo_id: "owner/name".

    Returns:
        The new state, also on disk.
    """
    card = folder / CARD
    expected = str(state["repo_id"])
    new = dict(state)
    if expected != repo_id and digest_of_file(card) == state["card"]:
        write_card(*_public(run, None), repo_id, folder)
        new["card"] = digest_of_file(card)
    elif expected != repo_id:
        card.write_text(card.read_text(encoding="utf-8").replace(expected, repo_id), encoding="utf-8")
    new["repo_id"] = repo_id
    write_json(folder / STATE, new)
    return new


def _public(run: SharedRun, token: str | None) -> tuple[SharedRun, Private]:
    """The run with a base and a data set that name nobody and no place, and what is private here."""
    private = private_words(run.folder, token)
    data = str(run.summary.get("dataset"))
    data = without_names(Path(data).name if is_local_path(data, private) else data, private)
    return replace(run, title=without_names(run.title, private), summary={**run.summary, "dataset": data}), private


def check(folder: Path, state: Mapping[str, Any], token: str | None) -> None:
    """Look through everything that is about to be uploaded.

    Args:
        folder: a `to_push/`.
        state: its state.
        token: the hub's.

    Raises:
        ValueError: a file is of no kind that may go, is no safetensors, or says something private; it names the file.
    """
    private = private_words(folder.parent, token)
    public = [name for name in (state["repo_id"], state["base"], state["repo_id"].rpartition("/")[2]) if name]
    for name in state["files"]:
        path = folder / name
        weights = WEIGHTS[state["kind"]].fullmatch(name) is not None
        if not weights and name not in PROSE | VOCABULARY | {PICTURE}:
            raise ValueError(f"{str(path)!r} is of no kind that is uploaded; remove it from `files` in {STATE}.")
        content = _header(path) if weights else path.read_bytes()
        found = leaks(content, private, public, prose=name in PROSE)
        if found:
            raise ValueError(
                f"{str(path)!r} holds {' and '.join(found)}, so nothing was uploaded; take it out there, or out of "
                "the run and push with `--again`."
            )


def _header(path: Path) -> bytes:
    """What a safetensors file says besides its numbers."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.dumps([file.metadata(), list(file.keys())]).encode()
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is no safetensors file ({error}); only safetensors are uploaded.") from error
