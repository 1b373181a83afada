"""Write the reference pages that come from code: `python tests/docs/reference_pages.py`."""

import argparse
import ast
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from page_parts import DOCS, code, described, plain, rendered, signature, table
from preset_pages import preset_pages

from grpo_ext import ops
from grpo_ext.__main__ import COMMANDS
from grpo_ext.bench.__main__ import BENCHMARKS
from grpo_ext.compat import TRLConfig
from grpo_ext.config import GRPOExtConfig
from grpo_ext.ops.surrogates import Surrogate
from grpo_ext.recipes.arguments import RecipeArguments
from grpo_ext.recipes.process_reward import ProcessRewardArguments
from grpo_ext.recipes.reward_model import RewardModelArguments
from grpo_ext.recipes.rlhf_run import RLHFArguments

TRL_CONFIG = "https://huggingface.co/docs/trl/grpo_trainer#trl.GRPOConfig"
WRITTEN = "This page is written by `python tests/docs/reference_pages.py`, and a test compares the two.\n"

# Class that holds fields of the config -> heading
HEADINGS = {
    "GRPOExtConfig": "Objective, rounds and scoring",
    "RewardFaultOptions": "Reward functions that fail",
    "ProcessOptions": "Process supervision",
    "RolloutOptions": "Groups, resampling and vLLM",
}
# Dict of an axis -> the field that chooses a row of it
CHOSEN_BY = {
    "BASELINES": "advantage_baseline",
    "SCALES": "scale_rewards",
    "RATIO_LEVELS": "importance_sampling_level",
    "SURROGATES": "surrogate",
    "AGGREGATIONS": "aggregation",
    "KL_ESTIMATORS": "kl_estimator",
    "KL_CONTROLLERS": "kl_controller",
    "CORRECTIONS": "vllm_importance_sampling_mode",
}
# Recipe -> its options, and whether all fields of the config are flags as well
RECIPES: dict[str, tuple[type[Any], bool]] = {
    "gsm8k": (RecipeArguments, True),
    "math": (RecipeArguments, True),
    "cmath": (RecipeArguments, True),
    "deepseekmath": (RecipeArguments, True),
    "rlhf": (RLHFArguments, True),
    "reward_model": (RewardModelArguments, False),
    "process_reward": (ProcessRewardArguments, False),
}
# Commands with a parser of their own, by the words that start them
PARSERS = {
    "python -m grpo_ext.recipes.evaluate": "grpo_ext.recipes.evaluate",
    "python -m grpo_ext.recipes.compare": "grpo_ext.recipes.compare",
    **{f"grpo-ext {name}": module for name, (module, _) in COMMANDS.items()},
    **{f"python -m grpo_ext.bench {name}": f"grpo_ext.bench.{name}" for name in BENCHMARKS},
}
# Defaults that depend on the machine
FOUND_HERE = {"device": "`cuda` where there is one"}


def modules() -> list[ModuleType]:
    """The modules of grpo_ext.ops."""
    return [import_module(f"grpo_ext.ops.{found.name}") for found in iter_modules(ops.__path__)]


def public(module: ModuleType) -> list[tuple[str, Any]]:
    """Public functions and classes that a module defines, in the order of its source."""
    tree = ast.parse(inspect.getsource(module))
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return [(name, vars(module)[name]) for name in names if not name.startswith("_")]


def short(module: ModuleType) -> str:
    """Name of a module without its package."""
    return module.__name__.rpartition(".")[2]


def function_of(row: Any) -> Any:
    """The function with the formula of a row."""
    if isinstance(row, Surrogate):
        return row.loss
    return row[1] if isinstance(row, tuple) else row


def axes() -> dict[str, dict[str, str]]:
    """Field of the config -> value -> name of the function behind it, as the page of formulas heads it."""
    found: dict[str, dict[str, str]] = {}
    for module in modules():
        for name in CHOSEN_BY.keys() & vars(module).keys():
            rows = {row: function_of(value) for row, value in vars(module)[name].items()}
            if all(function.__module__ == module.__name__ for function in rows.values()):
                found[CHOSEN_BY[name]] = {row: f"{short(module)}.{f.__name__}" for row, f in rows.items()}
    return found


# docs/reference/config.md


def meaning(text: str, choices: list[Any] | None) -> str:
    """The help without the list of choices, which has a column of its own."""
    ending = f" One of: {', '.join(map(str, choices or []))}."
    return plain(text.replace("%%", "%").removesuffix(ending))


def value_of(spec: Any) -> str:
    """The default of a dataclass field."""
    value = spec.default if spec.default is not MISSING else spec.default_factory()
    return "unset" if value is None or value == [] else code(value)


def field_rows(cls: type[Any], names: list[str], linked: dict[str, dict[str, str]]) -> Iterator[list[str]]:
    """A row for each field: name, default, values, meaning."""
    by_name = {spec.name: spec for spec in fields(cls)}
    for name in names:
        spec = by_name[name]
        choices = spec.metadata.get("choices")
        rows = linked.get(name, {})
        values = [
            f"[`{value}`](ops.md#{rows[value].replace('.', '')})" if value in rows else f"`{value}`"
            for value in choices or ()
        ]
        yield [f"`{name}`", value_of(spec), ", ".join(values), meaning(spec.metadata["help"], choices)]


def own_classes() -> list[type[Any]]:
    """The classes that add fields to TRL's config, the config itself first."""
    return [cls for cls in GRPOExtConfig.__mro__ if not issubclass(TRLConfig, cls)]


def config_page() -> str:
    """docs/reference/config.md."""
    linked = axes()
    parts = [
        "# Config\n",
        f"`GRPOExtConfig` has every field of [TRL's `GRPOConfig`]({TRL_CONFIG}) and the ones below. An own field that "
        "is unset leaves that choice to TRL's fields (`loss_type`, `scale_rewards`, ...), and when none is set TRL's "
        "own loss runs. In a recipe each field is a flag and a key of the YAML file. Values with a link are formulas. "
        "A value or a combination that means nothing is refused in one sentence.\n",
        WRITTEN,
    ]
    for cls in own_classes():
        parts += [f"## {HEADINGS.get(cls.__name__, cls.__name__)}\n"]
        rows = field_rows(GRPOExtConfig, list(cls.__annotations__), linked)
        parts += [table(["field", "default", "values", "meaning"], rows)]
    return "\n".join(parts)


# docs/reference/ops.md


def function_part(module: ModuleType, name: str, thing: Any) -> str:
    """One public name of a module."""
    head = f"### `{short(module)}.{name}`\n"
    if inspect.isclass(thing):
        return f"{head}\n{rendered(thing)}"
    return f"{head}\n```python\n{signature(thing)}\n```\n\n{rendered(thing)}"


def ops_page() -> str:
    """docs/reference/ops.md."""
    parts = [
        "# Formulas: `grpo_ext.ops`\n",
        "Every public function of `grpo_ext.ops`, in the words of its docstring. The room imports torch and nothing "
        "else, so each function can be called with plain tensors. B is the number of rows (completions), T of tokens, "
        "P of prompts, G of completions a prompt, R of rows of all processes. A mask is 1 for a token that counts.\n",
        WRITTEN,
    ]
    for module in modules():
        parts += [f"## {short(module)}\n", "\n\n".join(map(plain, described(module).paragraphs)) + "\n"]
        for name, field in CHOSEN_BY.items():
            if name in vars(module):
                rows = ", ".join(f"`{row}`" for row in vars(module)[name])
                parts += [f"`{name}`, chosen by `{field}`: {rows}.\n"]
        parts += [function_part(module, name, thing) for name, thing in public(module)]
    return "\n".join(parts)


# docs/reference/commands.md


def option_rows(parser: argparse.ArgumentParser) -> Iterator[list[str]]:
    """A row for each option of a parser."""
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        default = "unset" if action.default in (None, []) else code(action.default)
        if action.nargs == 0:
            default = "off"
        if not action.option_strings:
            default = "required"
        shown = action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
        values = ", ".join(f"`{value}`" for value in action.choices or ())
        text = (action.help or "").replace("%%", "%")
        yield [f"`{shown}`", FOUND_HERE.get(action.dest, default), values, plain(text)]


def command_part(words: str, module: str) -> str:
    """A command with a parser of its own."""
    parser = import_module(module).parser()
    text = plain((parser.description or "").replace("`%(prog)s`", ""))
    rows = table(["option", "default", "values", "meaning"], option_rows(parser))
    return f"## `{words}`\n\n{text}\n\n{rows}"


def recipe_part(names: list[str], cls: type[Any], with_config: bool) -> str:
    """Recipes that share their options."""
    told = {name: described(import_module(f"grpo_ext.recipes.{name}")).paragraphs[0] for name in names}
    firsts = [f"- `python -m grpo_ext.recipes.{name}`: {plain(text)}" for name, text in told.items()]
    also = (
        f"Every field of [`GRPOExtConfig`](config.md) and of [TRL's `GRPOConfig`]({TRL_CONFIG}) is a flag as well, "
        "and `--config FILE.yaml` reads any of them from a file. A value comes from the dataclass, then the recipe, "
        "then the preset, then the file, then the flag; the last one wins.\n"
        if with_config
        else "`--config FILE.yaml` reads any of them from a file.\n"
    )
    names_of = [spec.name for spec in fields(cls)]
    rows = [[f"`--{row[0].strip('`')}`", *row[1:]] for row in field_rows(cls, names_of, {})]
    joined = ", ".join(f"`{name}`" for name in names)
    return "\n".join(
        [
            f"## Recipe{'s' if len(names) > 1 else ''} {joined}\n",
            "\n".join(firsts) + "\n",
            also,
            table(["option", "default", "values", "meaning"], rows),
        ]
    )


def commands_page() -> str:
    """docs/reference/commands.md."""
    shared: dict[tuple[type[Any], bool], list[str]] = {}
    for name, row in RECIPES.items():
        shared.setdefault(row, []).append(name)
    parts = [
        "# Commands\n",
        "`grpo-ext COMMAND` is also `python -m grpo_ext COMMAND`. Each command prints the same with `--help`. Exit "
        "code 2 is a wrong call, in one sentence; a run that can be gone on with ends with 130 (Ctrl-C), 75 "
        "(SIGTERM), 3 (a detector of `--stop_on`) or 70 (a [fault](../how-to/faults.md)); under `accelerate launch` "
        "the [launcher ends with 1](../how-to/resume.md#with-several-processes) for all of them.\n",
        WRITTEN,
        *(recipe_part(names, *row) for row, names in shared.items()),
        *(command_part(words, module) for words, module in PARSERS.items()),
    ]
    return "\n".join(parts)


PAGES: dict[str, Callable[[], str]] = {
    "reference/config.md": config_page,
    "reference/ops.md": ops_page,
    "reference/commands.md": commands_page,
    **preset_pages(),
}


if __name__ == "__main__":
    for place, page in PAGES.items():
        (DOCS / place).write_text(page(), encoding="utf-8")
