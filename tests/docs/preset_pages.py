"""The pages of the presets: config and formula from code, what only a person can say from presets.yaml."""

import ast
import inspect
import io
import json
import tokenize
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import yaml
from page_parts import DOCS, code, plain, table

from grpo_ext import presets
from grpo_ext.config import GRPOExtConfig
from grpo_ext.hub.formula import PAPERS, formula
from grpo_ext.ops.surrogates import SURROGATES
from grpo_ext.presets import PRESETS
from grpo_ext.report.comparison import Comparison
from grpo_ext.report.comparison import table as comparison_table

NOTES: dict[str, dict[str, Any]] = yaml.safe_load((DOCS / "reference" / "presets" / "presets.yaml").read_text("utf-8"))
WRITTEN = (
    "This page is written by `python tests/docs/reference_pages.py` from the code and from `presets.yaml` beside it.\n"
)
# Comparisons that are kept beside docs/explanation/comparisons.md -> what they train on
COMPARED = {"built_in": "Built-in problems of one step", "mawps": "Problems of one step from MAWPS"}
MEASURED = (
    "SmolLM2-135M-Instruct, three seeds, equal generated tokens, greedy accuracy on held-out problems; "
    "[all variants, curves and commands](../../explanation/comparisons.md). No larger model was measured.\n"
)
NOT_MEASURED = (
    "Not measured. [Measured comparisons](../../explanation/comparisons.md) has presets that were run side by side.\n"
)


def sources() -> dict[str, dict[str, str]]:
    """Preset -> field -> the comment behind its value, which names the place in the paper."""
    text = inspect.getsource(presets)
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }
    (rows,) = (node.value for node in ast.parse(text).body if isinstance(node, ast.AnnAssign))
    assert isinstance(rows, ast.Dict)
    found = {}
    for name, row in zip(rows.keys, rows.values, strict=True):
        assert isinstance(name, ast.Constant) and isinstance(row, ast.Dict)
        keys = [key for key in row.keys if isinstance(key, ast.Constant)]
        found[name.value] = {key.value: comments.get(key.lineno, "") for key in keys}
    return found


def paper(name: str) -> str:
    """What the method is called, with a link to its paper."""
    found = PAPERS[name]
    return "no single paper" if found is None else f"{found[0]}, [{found[1]}](https://arxiv.org/abs/{found[1]})"


def result(name: str) -> str:
    """Rows of the kept comparisons that have the preset."""
    parts = []
    for stem, problems in COMPARED.items():
        kept = DOCS / "assets" / "comparisons" / f"{stem}.json"
        found = Comparison.from_json(json.loads(kept.read_text("utf-8")))
        first = found.outcomes[0].variant
        runs = [run for run in found.outcomes if run.variant in (first, name)]
        if any(run.variant == name for run in runs):
            rows = comparison_table(replace(found, outcomes=runs))
            parts.append(f"{problems}, {found.budget:,} tokens a run:\n\n{rows}")
    return "\n".join([MEASURED, *parts]) if parts else NOT_MEASURED


def preset_page(name: str) -> str:
    """docs/reference/presets/NAME.md."""
    notes, comments = NOTES[name], sources()[name]
    other = "dr_grpo" if name == "deepseekmath" else "deepseekmath"
    rows = [[f"`{field}`", code(value), plain(comments[field])] for field, value in PRESETS[name].items()]
    parts = [
        f"# Preset `{name}`\n",
        f"Method: {paper(name)}.\n",
        notes["about"],
        WRITTEN,
        "## Formula\n",
        f"```text\n{formula(PRESETS[name])}\n```\n",
        "## Config\n",
        table(["field", "value", "source"], rows),
        "A value without a source is not given in the paper, or follows from the method. Fields that are not named "
        "keep [their defaults](../config.md).\n",
        "## What differs from the paper\n" if PAPERS[name] else "## What to know\n",
        "".join(f"- {line}\n" for line in notes["differs"]),
        "## Result\n",
        result(name),
        "## Replicate\n",
        "Flags alone change [the quickstart](../../tutorials/first_run.md); a YAML file is a run of its own.\n",
        f"```bash\n{notes['replicate'].strip()}\n```\n",
        "Against another variant, with the same number of generated tokens for each of several seeds:\n",
        f"```bash\npython -m grpo_ext.recipes.compare --variants {other} {name}\n```\n",
    ]
    return "\n".join(parts)


def index_page() -> str:
    """docs/reference/presets/index.md."""
    rows = []
    for name, fields in PRESETS.items():
        config = GRPOExtConfig(output_dir="unused", use_cpu=True, bf16=False, report_to="none", **fields)
        objective = config.objective()
        surrogate = SURROGATES[objective.surrogate]
        to = {"old": "", "reference": " to the reference"}[objective.ratio_against]
        held = {"reference": "", "old": " to the old policy"}[objective.kl_against]
        rows.append(
            [
                f"[`{name}`]({name}.md)",
                f"{config.advantage_baseline}, {config.scale_rewards}",
                {"none": "none", "own": "its own", "level": f"{objective.ratio_level}{to}"}[surrogate.ratio],
                objective.surrogate,
                objective.aggregation,
                f"{objective.kl_estimator}{held}, {config.beta:g}" if config.beta else "none",
            ]
        )
    head = ["preset", "baseline, scale", "ratio", "surrogate", "aggregation", "KL"]
    parts = [
        "# Presets\n",
        "A preset is a dict of config fields in `grpo_ext/presets.py`, values with the section of the paper where it "
        'gives one. Use one as `GRPOExtConfig(**PRESETS["gspo"])` with your own fields beside it, or as '
        "`--preset gspo`. What a YAML file or a flag says comes after the preset.\n",
        "The words in the columns are rows of [the axes](../../explanation/axes.md), with their formulas under "
        "[Formulas](../ops.md). Where nothing is said, a ratio is to the old policy and a KL to the reference.\n",
        table(head, [[row[0], *map(plain, row[1:])] for row in rows]),
        WRITTEN.replace(" and from `presets.yaml` beside it", ""),
    ]
    return "\n".join(parts)


def preset_pages() -> dict[str, Callable[[], str]]:
    """Place of each page -> what writes it."""
    pages: dict[str, Callable[[], str]] = {"reference/presets/index.md": index_page}
    return pages | {f"reference/presets/{name}.md": partial(preset_page, name) for name in PRESETS}
