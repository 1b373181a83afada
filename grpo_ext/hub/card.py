"""The model card of a run: metadata that the hub reads, and a page for people."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from grpo_ext.data.sets import SETS, title_of
from grpo_ext.evaluation.changes import changes
from grpo_ext.hub.formula import PAPERS, default_of, formula
from grpo_ext.hub.private import Private, public_command
from grpo_ext.hub.run import SharedRun
from grpo_ext.hub.scores import eval_results, table
from grpo_ext.hub.usage import served, usage
from grpo_ext.presets import PRESETS

CARD = "README.md"
PICTURE = "learning_curve.png"
TAGS = ("grpo", "trl", "grpo_ext")
ARXIV = "https://arxiv.org/abs/"


def metadata(run: SharedRun, repo_id: str) -> ModelCardData:
    """The card's metadata in the hub's terms.

    Args:
        run: the run.
        repo_id: where it goes, "owner/name".

    Returns:
        What stands in the YAML block.
    """
    trained = [SETS[part].trained for part in str(run.summary["dataset"]).split("+") if part in SETS]
    adapter = run.kind == "adapter"
    relation: dict[str, Any] = {"base_model_relation": "adapter" if adapter else "finetune"} if run.base else {}
    results = eval_results(run.summary) or None
    return ModelCardData(
        base_model=run.base,
        datasets=[name for name in trained if name is not None] or None,
        eval_results=results,
        library_name="peft" if adapter else "transformers",
        license=run.license.get("license"),
        license_name=run.license.get("license_name"),
        license_link=run.license.get("license_link"),
        metrics=["accuracy"] if results else None,
        model_name=repo_id.rpartition("/")[2],
        pipeline_tag="text-generation",
        tags=[*TAGS, "lora"] if adapter else list(TAGS),
        **relation,
    )


def model_card(run: SharedRun, private: Private, repo_id: str, picture: bool) -> ModelCard:
    """The card of a run.

    Args:
        run: the run.
        private: strings of this machine, which the command is cleaned of.
        repo_id: where it goes, "owner/name".
        picture: whether the learning curve lies beside the card.

    Returns:
        The card, not yet written.
    """
    parts = [
        f"# {repo_id.rpartition('/')[2]}",
        _summary(run),
        _evaluation(run),
        _usage(run, repo_id),
        _training(run, private, picture),
        _objective(run),
        _versions(run),
        _license(run),
    ]
    body = "\n\n".join(part for part in parts if part)
    return ModelCard(f"---\n{metadata(run, repo_id).to_yaml()}\n---\n\n{body}\n")


def _linked(run: SharedRun) -> str:
    return (
        f"[{run.base}](https://huggingface.co/{run.base})"
        if run.base
        else f"{run.title}, a model that is not on the hub"
    )


def _summary(run: SharedRun) -> str:
    made = "A LoRA adapter of" if run.kind == "adapter" else "A model trained from"
    preset = run.recipe.get("preset")
    paper = PAPERS.get(preset) if preset else None
    method = f"{paper[0]} ([{paper[1]}]({ARXIV}{paper[1]}))" if paper else "group relative policy optimisation"
    first = next((row for row in changes(run.summary) if row.after is not None and row.before is not None), None)
    gain = ""
    if first is not None and first.after is not None and first.before is not None:
        gain = (
            f" Greedy accuracy on {first.problems} held-out problems went from {first.before.value:.1%} to "
            f"{first.after.value:.1%}."
        )
    problems = title_of(str(run.summary["dataset"]))
    return (
        f"{made} {_linked(run)}, trained for {run.summary.get('steps')} steps on {problems} with {method}, "
        f"using grpo_ext on top of [TRL](https://github.com/huggingface/trl).{gain}"
    )


def _evaluation(run: SharedRun) -> str:
    rows = table(run.summary)
    if not rows:
        return ""
    warm_up = run.recipe.get("sft_steps")
    start = f" after a supervised warm-up of {warm_up} steps" if warm_up else ""
    return (
        f"## Evaluation\n\n{rows}\n\nGreedy pass@1 with 95 % bootstrap intervals over problems. *Before* is the "
        f"policy{start}, as the GRPO steps found it. *Strict* reads the answer in the format that the prompt asks for "
        "alone, *lenient* wherever it stands."
    )


def _usage(run: SharedRun, repo_id: str) -> str:
    blocks = "\n\n".join(f"With {title}:\n\n```python\n{code}```" for title, code in usage(run, repo_id).items())
    own = (
        ""
        if run.base or run.kind == "model"
        else "\n\nThe base is a local model: put its folder in place of `PATH_OF_THE_BASE`."
    )
    return f"## Use\n\n{blocks}\n\nServed by vLLM:\n\n```bash\n{served(run, repo_id)}\n```{own}"


def _training(run: SharedRun, private: Private, picture: bool) -> str:
    command = public_command(str(run.summary.get("command", "")), run.title, private)
    curve = f"![Reward and completion length against the step]({PICTURE})\n\n" if picture else ""
    rewards = ", ".join(f"`{name}`" for name in run.recipe.get("reward_funcs") or ())
    facts = {
        "Problems": title_of(str(run.summary["dataset"])),
        "Difficulty": run.recipe.get("difficulty", "") if run.summary["dataset"] == "arithmetic" else "",
        "Rewards": rewards or ("a learned reward model" if run.summary.get("reward_model") else ""),
        "Answer format": f"`{run.recipe['answer_format']}`" if run.recipe.get("answer_format") else "",
        "Steps": str(run.summary.get("steps")),
        "Time": f"{float(run.summary['seconds']) / 60:.0f} minutes" if run.summary.get("seconds") else "",
    }
    lines = "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)
    return f"## Training\n\n{curve}```bash\n{command}\n```\n\n{lines}"


def _objective(run: SharedRun) -> str:
    preset = run.recipe.get("preset")
    row = PRESETS.get(preset or "", {})
    paper = PAPERS.get(preset) if preset else None
    from_paper = f", after [{paper[0]}]({ARXIV}{paper[1]})" if paper else ""
    named = f"Preset `{preset}`{from_paper}." if preset else "No preset: the fields of the config as they were given."
    # A run notes what is not the config's default; one that noted nothing has at least its preset
    fields = row if run.config is None else run.config
    used = {name: fields[name] if name in fields else default_of(name) for name in row}
    values = ", ".join(f"`{name}={_plain(value)}`" for name, value in used.items())
    changed = ", ".join(f"`{name}`" for name, value in used.items() if value != row[name])
    note = f" Differing from the preset: {changed}." if changed else ""
    stated = f"\n\n{values}.{note}" if values else ""
    return f"## Objective\n\n{named}{stated}\n\n```text\n{formula(fields)}\n```"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _versions(run: SharedRun) -> str:
    versions = {**(run.summary.get("versions") or {}), "Python": run.summary.get("python")}
    rows = "\n".join(f"| {name} | {version} |" for name, version in versions.items() if version)
    return f"## Versions\n\n| package | version |\n|---|---|\n{rows}" if rows else ""


def _license(run: SharedRun) -> str:
    name = run.license.get("license_name") or run.license.get("license")
    if name is None:
        return (
            f"## Licence\n\nThe licence of the base, {_linked(run)}, holds for what is derived from it; its card was "
            "not at hand when this one was written, so none is stated here."
        )
    link = run.license.get("license_link")
    return f"## Licence\n\n{f'[{name}]({link})' if link else name}, the licence of the base, {_linked(run)}."


def write_card(run: SharedRun, private: Private, repo_id: str, folder: Path) -> Path:
    """Write the card as `README.md`.

    Args:
        run: the run.
        private: strings of this machine, which the command is cleaned of.
        repo_id: where it goes, "owner/name".
        folder: where; the card shows the learning curve that lies there.

    Returns:
        The file.
    """
    path = folder / CARD
    model_card(run, private, repo_id, (folder / PICTURE).is_file()).save(path)
    return path
