"""Dynamic sampling on two processes: the same rounds on both, and the step of one large batch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from resampled_runs import normalised, plain_logps, plain_step, policy_of
from tiny_runs import largest_difference, policy

HERE = Path(__file__).parent

# (call, place) of the groups of each process in each generation, by the script of two_processes.py
SOURCES = [[[(0, 0), (1, 1)], [(0, 0), (0, 1)]], [[(2, 0), (2, 1)], [(1, 0), (1, 1)]]]


def in_two_processes(folder: Path, out: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [*command, str(HERE / "two_processes.py"), str(folder), str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.slow
def test_two_processes(tiny_folder: Path, tmp_path: Path) -> None:
    ranks = in_two_processes(tiny_folder, tmp_path)
    # As many rows on both in each call, and other prompts on each
    assert [[len(call) for call in rank["prompts"]] for rank in ranks] == [[8, 8, 8]] * 2
    assert not set(ranks[0]["prompts"][1]) & set(ranks[1]["prompts"][1])
    for step, sources in enumerate(SOURCES):
        parts = [rank["batches"][step] for rank in ranks]
        losses_old, rewards = [], []
        for rank, groups, part in zip(ranks, sources, parts, strict=True):
            rewards += [rank["rewards"][call][4 * place + i] for call, place in groups for i in range(4)]
            asked = [rank["prompts"][call][4 * place + i] for call, place in groups for i in range(4)]
            assert rank["asked"][step] == asked
            made_by = [0 if call < 2 else 1 for call, _ in groups for _ in range(4)]
            by_policy = [
                [values.detach() for values in plain_logps(policy_of(tiny_folder, rank["weights"][i]), part)]
                for i in (0, 1)
            ]
            losses_old += [by_policy[maker][row] for row, maker in enumerate(made_by)]
        advantages = normalised(rewards, [4] * 4)
        found = torch.cat([part["advantages"] for part in parts]).double()
        assert torch.allclose(found, torch.tensor(advantages).double(), rtol=0, atol=1e-6)
        assert torch.cat([part["group_ids"] for part in parts]).tolist() == [row // 4 for row in range(16)]
        whole = joined(parts)
        assert {int(part["num_items_in_batch"]) for part in parts} == {int(whole["completion_mask"].sum())}
        model = policy_of(tiny_folder, ranks[0]["weights"][step])
        wanted = plain_step(model, whole, advantages, losses_old, policy(tiny_folder), 0.0, 0.3)
        assert largest_difference(wanted, ranks[0]["weights"][step]) > 1e-3
        for rank in ranks:
            assert largest_difference(wanted, rank["weights"][step + 1]) < 2e-6
    logs = ranks[0]["logs"]
    assert [row["resampling/groups_replaced"] for row in logs] == [1.0, 2.0]
    assert [row["resampling/carried"] for row in logs] == [0.0, 2.0]
    assert [row["resampling/live_groups"] for row in logs] == [4.0, 4.0]
    assert (
        sum(row["resampling/tokens_trained"] + row["resampling/tokens_discarded"] for row in logs)
        == (logs[-1]["num_tokens"])
    )
    table = pd.read_parquet(tmp_path / "run" / "completions" / "completions_00001.parquet")
    assert table["prompt"].tolist() == ranks[0]["asked"][0] + ranks[1]["asked"][0]


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows of both processes; `plain_logps` reads each by its mask, so padding is free."""
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    whole: dict[str, Any] = {}
    for name in names:
        width = max(part[name].size(1) for part in parts)
        whole[name] = torch.cat(
            [torch.nn.functional.pad(part[name], (0, width - part[name].size(1))) for part in parts]
        )
    return whole
