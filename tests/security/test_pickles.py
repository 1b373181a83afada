"""No pickle that could run something is read: weights are safetensors, states of a training are looked through."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from untrusted import Executes, by_old_torch, by_pickle, by_torch, with_pickled_weights
from ways_in import OTHERS, POLICY

from grpo_ext.checkpoints import MANIFEST, choose, write_manifest
from grpo_ext.data.preferences import preference_pairs
from grpo_ext.models import tiny_policy
from grpo_ext.models.policy import add_lora
from grpo_ext.recipes import evaluate
from grpo_ext.recipes.supervised import Supervised, chosen_answers, tune

# The recipes open their policy by `load_policy`, and rounds train their model by `train_reward_model`
NAMED = [name for name in (*POLICY, *OTHERS) if name == "recipe evaluate" or not name.startswith(("recipe", "rounds"))]


def test_the_pickles_here_do_run_something(tmp_path: Path) -> None:
    for place, write in enumerate((by_torch, by_pickle, by_old_torch)):
        write(tmp_path / "pickle", tmp_path / str(place))
        (tmp_path / str(place)).mkdir()
        # The second mkdir is the pickle's
        with pytest.raises(FileExistsError):
            torch.load(tmp_path / "pickle", weights_only=False)


@pytest.mark.parametrize("name", NAMED)
def test_pickled_weights_are_refused(name: str, base: Path, mark: Path, tmp_path: Path) -> None:
    folder = with_pickled_weights(base, tmp_path / "model", mark)
    with pytest.raises(ValueError, match=r"holds its weights in pytorch_model\.bin, a pickle, which can run code"):
        {**POLICY, **OTHERS}[name](folder, tmp_path / "out")


def test_a_pickle_beside_safetensors_is_not_read(base: Path, mark: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "model")
    torch.save(Executes(mark), tmp_path / "model" / "pytorch_model.bin")
    POLICY["load_policy"](tmp_path / "model", tmp_path / "out")


def test_a_pickled_adapter_is_refused(base: Path, mark: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    add_lora(tiny_policy(seed=0)[0], 2).save_pretrained(folder)
    (folder / "adapter_model.safetensors").unlink()
    torch.save(Executes(mark), folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"holds its weights in adapter_model\.bin, a pickle"):
        evaluate.main([str(folder), "--base_model", str(base), "--task", "arithmetic", "--output_dir", str(tmp_path)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint after the first of two steps."""
    out = tmp_path_factory.mktemp("trained")
    continued(out)
    shutil.rmtree(out / "checkpoint-2")
    return out


def continued(out: Path) -> int:
    rows = chosen_answers(preference_pairs("train", 8))
    return tune(*tiny_policy(seed=0), rows, out, Supervised(batch_size=4, save_steps=1))["steps"]


# What is exchanged in a checkpoint, and whether its manifest is written anew
WRITERS = (by_torch, by_pickle, by_old_torch)
TAMPERED = [
    *((name, write) for name in ("optimizer.pt", "rng_state.pth") for write in WRITERS),
    ("scheduler.pt", by_torch),
]


@pytest.mark.parametrize("known", [True, False], ids=["with a manifest", "of another program"])
@pytest.mark.parametrize(("name", "write"), TAMPERED)
def test_a_checkpoint_that_would_run_something_is_refused(
    name: str, write: Callable[[Path, Path], None], known: bool, trained: Path, mark: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint-1"
    shutil.copytree(trained / "checkpoint-1", checkpoint)
    write(checkpoint / name, mark)
    (checkpoint / MANIFEST).unlink()
    if known:
        write_manifest(checkpoint)
    with pytest.raises(ValueError, match=rf"checkpoint-1': its {name} holds .*, which could run code when it is read"):
        continued(tmp_path)


def test_weights_of_a_checkpoint_are_no_pickle_either(trained: Path, mark: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-1"
    shutil.copytree(trained / "checkpoint-1", checkpoint)
    (checkpoint / "model.safetensors").unlink()
    by_torch(checkpoint / "pytorch_model.bin", mark)
    write_manifest(checkpoint)
    with pytest.raises(ValueError, match=r"`resume_from_checkpoint` .* holds its weights in pytorch_model\.bin"):
        choose(str(checkpoint), tmp_path)


def test_training_args_are_never_read(trained: Path, mark: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    by_pickle(out / "checkpoint-1" / "training_args.bin", mark)
    write_manifest(out / "checkpoint-1")
    assert continued(out) == 2
    assert json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())["global_step"] == 2
