"""A reward that fails on one of two processes stops both, with one checkpoint that both go on from."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from table import Row, by_its_rows
from tiny_runs import largest_difference

HERE = Path(__file__).parent


@by_its_rows
def test_all_processes_stop_when_one_has_no_rewards(row: Row, tiny_folder: Path, tmp_path: Path) -> None:
    assert row.name == "processes"
    places = [HERE.parents[1], HERE, HERE.parent / "trainer", os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(HERE / "reward_processes.py"), str(tiny_folder), str(tmp_path)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, places)),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert ranks[0]["stops"] == ranks[1]["stops"]
    (reward, saved), (steps, steps_saved) = ranks[0]["stops"]
    assert reward.startswith("Process 1: Reward function 'early_letters' raised ConnectionError (the server is away)")
    assert steps == "Process 1: Process reward 'calculations' raised ConnectionError: the server is away"
    assert [note.split(", ")[0] for note in saved + steps_saved] == ["Stopped after step 2", "Stopped after step 1"]
    for rank in ranks:
        assert largest_difference(rank["whole"], rank["again"]) == 0
    assert ranks[0]["whole_log"] == ranks[0]["again_log"]
