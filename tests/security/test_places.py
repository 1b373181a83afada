"""A name that comes from a file or a stranger does not lead out of the folder that it belongs to."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from grpo_ext.checkpoints import MANIFEST, choose, flaw, rotate, write_manifest
from grpo_ext.data.sources import find
from grpo_ext.evaluation.subjects import Subject
from grpo_ext.hub.prepare import check
from grpo_ext.hub.run import check_repo_id
from grpo_ext.models import tiny_policy
from grpo_ext.models.saving import save_policy
from grpo_ext.recipes.evaluate import checked, parser
from grpo_ext.recipes.iterative import ReplayedReward, RoundRewardArguments
from grpo_ext.recipes.rlhf_run import RLHFArguments
from grpo_ext.trust import inside

OUTSIDE = ["../x", "../../etc/passwd", "/etc/passwd", "a/../../x", "a\0b", "..", "../out-too/x"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_place_outside_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^a file names .*, which is outside of "):
        inside(tmp_path / "out", name, "a file")


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="outside"):
        inside(tmp_path / "out", "link/x", "a file")
    assert inside(tmp_path / "out", "rounds/round-1", "a file") == tmp_path / "out" / "rounds" / "round-1"


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20))
def test_what_is_not_refused_is_inside(name: str) -> None:
    folder = Path("some", "folder")
    try:
        place = inside(folder, name, "a file")
    except ValueError:
        return
    assert place.resolve().is_relative_to(folder.resolve())


@pytest.mark.parametrize("name", ["../x.jsonl", "/x.jsonl", "a\\x.jsonl", "..", "C:x"])
def test_the_data_folder_is_not_left(name: str) -> None:
    with pytest.raises(ValueError, match="is not the plain name of a file inside the data folder"):
        find(name, "openai/gsm8k")


@pytest.mark.parametrize("name", ["../../x", "/etc", "..", "a/../..", ".", "\\\\host\\share"])
def test_a_models_folder_in_an_evaluation_is_one_name(name: str) -> None:
    label = Subject(name, "base").label
    assert label not in (".", "..") and not {"/", "\\", ":"} & set(label) and not label.startswith(".")


def test_a_tasks_file_names_no_folder_above() -> None:
    args = checked(parser().parse_args(["model", "--task", "../../up.jsonl"]))
    assert args.output_dir == str(Path("runs", "evaluate", "up"))


@pytest.mark.parametrize("name", ["../x", "a/../b", "/x", "a/b/c", "a..b"])
def test_a_repository_is_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="which the hub does not take"):
        check_repo_id(name, "repo_id")


def test_an_upload_takes_no_file_from_elsewhere(tmp_path: Path) -> None:
    state = {"repo_id": "a/b", "base": None, "kind": "adapter", "files": ["../summary.json"]}
    (tmp_path / "to_push").mkdir()
    with pytest.raises(ValueError, match="is of no kind that is uploaded"):
        check(tmp_path / "to_push", state, None)


def test_names_of_folders_are_chosen_from_lists(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"save_format is '\.\./x', but must be among"):
        save_policy(*tiny_policy(seed=0), tmp_path / "run", ["../x"])
    with pytest.raises(ValueError, match=r"`stages` is '\.\./x'; it must be one of"):
        RLHFArguments(stages=["../x"])


# Checkpoints of a stranger


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    write_manifest(folder)
    return folder


def test_a_manifest_does_not_look_elsewhere(tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "checkpoint-1")
    manifest = json.loads((made / MANIFEST).read_text())
    manifest["files"]["../../secret"] = {"bytes": 1}
    (made / MANIFEST).write_text(json.dumps(manifest))
    for looks in (lambda: flaw(made), lambda: choose("last", tmp_path)):
        with pytest.raises(ValueError, match=r"manifest\.json names '\.\./\.\./secret', which is outside of"):
            looks()


def test_deleting_old_checkpoints_follows_no_link(tmp_path: Path) -> None:
    elsewhere = checkpoint(tmp_path / "elsewhere" / "checkpoint-1")
    out = tmp_path / "out"
    checkpoint(out / "checkpoint-2")
    (out / "checkpoint-1").symlink_to(elsewhere)
    (out / ".saving").symlink_to(tmp_path / "elsewhere")
    rotate(out, 1, None)
    choose("last", out)
    assert (elsewhere / "trainer_state.json").is_file()


@pytest.mark.parametrize("field", ["reward_model", "pairs"])
def test_a_round_takes_nothing_from_elsewhere(field: str, tmp_path: Path) -> None:
    reward = ReplayedReward(
        RoundRewardArguments(reward_model="some/model"), Dataset.from_dict({"prompt": ["a"]}), None, check=lambda: []
    )
    state: dict[str, Any] = {"reward_model": "rounds/round-1/reward_model", "pairs": [], "history": []}
    state[field] = "../../x" if field == "reward_model" else ["/etc/passwd"]
    with pytest.raises(ValueError, match=r"the checkpoint's round\.json names '.*', which is outside of"):
        reward.restore(state, SimpleNamespace(args=SimpleNamespace(output_dir=str(tmp_path))))
