"""The recipe rlhf, killed and started again by the same command, each time in a process forked off this one.

python stage_runs.py PLAN: a JSON file with a list of runs, each with `words` (the command line), `out` (its folder)
and `kills` (row of MOMENTS and number of the call, one a start). The exit codes of each run are printed as JSON.
"""

import json
import sys
from pathlib import Path

import torch
from resume_runs import at_call, forked

from grpo_ext.recipes.rlhf_run import main
from grpo_ext.trainer import saving

MOMENTS = {
    "optimizer": (torch.optim.AdamW, "step"),
    "manifest": (saving, "write_manifest"),
    "rename": (saving, "publish"),
    "deletion": (saving, "rotate"),
}


def perform(words: list[str], kill: tuple[str, int] | None) -> None:
    if kill is not None:
        at_call(*MOMENTS[kill[0]], kill[1])
    code = main(words)
    assert code == 0, code


if __name__ == "__main__":
    codes = [
        [
            forked(Path(run["out"]), lambda run=run, kill=kill: perform(run["words"], kill))[0]
            for kill in [*run["kills"], None]
        ]
        for run in json.loads(Path(sys.argv[1]).read_text())
    ]
    print(json.dumps(codes))
