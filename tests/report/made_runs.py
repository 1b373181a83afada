"""Folders of runs, written as a recipe writes them but with invented numbers, and texts that try to break a page."""

import json
from pathlib import Path
from typing import Any

from grpo_ext.evaluation.estimators import bootstrap_interval

HOSTILE = [
    "</script><script>window.broken = 1</script>",
    '<img src=x onerror="window.broken = 1">',
    "<!--<script>",
    "\"><svg onload='window.broken = 1'>",
    "{{ 7 * 7 }}{% raw %}",
    "]]>&lt;b&gt;&amp;",
    "a\x00b\x1b[31mc\u2028d\u202ee\ufefff\x9bg",
    "half \ud83d of a pair",
    '<a href="javascript:window.broken = 1">run</a>',
]


def metrics(steps: int, **more: float) -> list[dict[str, Any]]:
    """Rows as TRL logs them, with a reward that rises from 0.2 to 0.8."""
    return [
        {
            "step": step,
            "loss": 1e-9 * step,
            "grad_norm": 0.3,
            "learning_rate": 1e-4,
            "num_tokens": 1000.0 * step,
            "completions/mean_length": 20.0 - step / steps,
            "completions/min_length": 5.0,
            "completions/max_length": 32.0,
            "completions/clipped_ratio": 0.25,
            "rewards/correct/mean": 0.1,
            "rewards/format/mean": 0.9,
            "reward": 0.2 + 0.6 * (step - 1) / max(steps - 1, 1),
            "reward_std": 0.4,
            "frac_reward_zero_std": 0.5,
            "entropy": 1.0 / step,
            "clip_ratio/region_mean": 0.0,
            "kl": 0.01 * step,
            "step_time": 2.0,
            "memory/peak_gib": 3.5,
            "epoch": step / steps,
            **more,
        }
        for step in range(1, steps + 1)
    ]


def group(step: int, index: int = 0, prompt: str = "1 + 1 = ?", texts: tuple[str, ...] = ("2", "3")) -> dict[str, Any]:
    """One line of completions.jsonl: the first text earns most."""
    rows = [
        {
            "completion": text,
            "reward": 1.0 - place,
            "rewards": {"correct": 1.0 - place, "format": 0.0},
            "advantage": 0.5 - place,
        }
        for place, text in enumerate(texts)
    ]
    return {"step": step, "group": index, "groups": 2, "prompt": prompt, "completions": rows}


def scores(share: float, problems: int) -> dict[str, Any]:
    """One measurement: the share of problems that is nearest, with its interval."""
    right = round(share * problems)
    found = bootstrap_interval([1.0] * right + [0.0] * (problems - right))
    both = ("accuracy", "accuracy_lenient")
    return {
        **dict.fromkeys(both, found.value),
        **{f"{key}_interval": [found.low, found.high] for key in both},
        "problems": problems,
    }


def summary(before: float | None = 0.25, after: float | None = 0.75, problems: int = 100) -> dict[str, Any]:
    """What a recipe writes at its end."""
    sides = {name: None if value is None else scores(value, problems) for name, value in
             {"before": before, "after": after}.items()}  # fmt: skip
    return {
        **sides,
        "evaluations": {"arithmetic": sides},
        "model": "org/model",
        "dataset": "arithmetic",
        "seconds": 312.0,
        "command": "python -m grpo_ext.recipes.gsm8k --seed 3",
        "recipe": {"lora_r": 16, "dtype": "bfloat16", "preset": None},
        "config": {"beta": 0.04, "num_generations": 8},
        "versions": {"torch": "2.13.0", "trl": "1.16.0"},
        "hardware": {
            "cpu": "a processor",
            "cores": 2,
            "memory": 8 * 2**30,
            "gpus": [{"name": "a GPU", "memory": 80 * 2**30}],
        },
        "python": "3.11.7",
    }


def lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_run(folder: Path, steps: int = 24, **parts: Any) -> Path:
    """A run's folder; `metrics`, `groups`, `summary` and `findings` replace what is written, None leaves it out."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "metrics": metrics(steps),
        "groups": [group(step, index) for step in (1, steps) for index in (0, 1)],
        "summary": summary(),
        "findings": None,
        **parts,
    }
    for name, file in {"metrics": "metrics", "groups": "completions", "findings": "health"}.items():
        if made[name] is not None:
            lines(folder / f"{file}.jsonl", made[name])
    if made["summary"] is not None:
        (folder / "summary.json").write_text(json.dumps(made["summary"]), encoding="utf-8")
    return folder


def make_hostile_run(folder: Path) -> Path:
    """A run whose every text attacks the page."""
    groups = [group(1, index, text, (text, text * 2)) for index, text in enumerate(HOSTILE)]
    for row in groups:
        for completion in row["completions"]:
            completion["rewards"] = {HOSTILE[0]: 1.0, HOSTILE[1]: 0.0}
    made = summary()
    made |= {"model": HOSTILE[0], "dataset": HOSTILE[1], "command": "".join(HOSTILE)}
    made["recipe"] = {text: text for text in HOSTILE}
    made["versions"], made["hardware"]["cpu"] = {HOSTILE[1]: HOSTILE[0]}, HOSTILE[0]
    made["evaluations"] = {HOSTILE[0]: {side: made[side] for side in ("before", "after")}}
    logged = metrics(24, **{f"rewards/{HOSTILE[0]}/mean": 0.5, HOSTILE[1]: 1.0, HOSTILE[8]: 2.0})
    findings = [
        {"step": 3, "detector": HOSTILE[1], "severity": 'x" onclick="window.broken = 1', "message": HOSTILE[0]}
    ]
    return make_run(folder, metrics=logged, groups=groups, summary=made, findings=findings)
