"""A short run that logs to a back end; `python logger_runs.py POLICY OUT` takes trackio and prints what was logged."""

import json
import sys
from pathlib import Path
from typing import Any

from tiny_runs import make

from grpo_ext.callbacks import CompletionsCallback, MetricsCallback, ProgressBar, SampleCallback


def trained(policy: Path, out: Path, **fields: Any) -> list[dict[str, Any]]:
    """Rows that a run of two steps logged, with all our callbacks beside TRL's own logging."""
    trainer = make(policy, out, beta=0.1, run_name="tiny", log_completions=True, num_completions_to_print=1, **fields)
    for callback in (
        SampleCallback(1, trainer.newest_groups),
        CompletionsCallback(out / "completions.jsonl", trainer.newest_groups),
        MetricsCallback(out / "metrics.jsonl"),
        ProgressBar(),
    ):
        trainer.add_callback(callback)
    trainer.train()
    return [row for row in trainer.state.log_history if "reward" in row]


if __name__ == "__main__":
    policy, out = map(Path, sys.argv[1:])
    print(json.dumps(trained(policy, out, report_to="trackio", project="grpo")))
