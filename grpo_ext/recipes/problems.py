"""The problems that a recipe trains on and is measured on, by name."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from datasets import Dataset, concatenate_datasets

from grpo_ext.data.sets import SETS
from grpo_ext.evaluation.tasks import TASKS, Task, built_in, task_of_file

COLUMNS = ["prompt", "answer", "question", "solution", "answer_format"]


class Asked(Protocol):
    """What a recipe's arguments say about problems."""

    dataset: str
    difficulty: str
    answer_format: Any
    system_prompt: str | None


@dataclass(frozen=True)
class Problems:
    """A row of the table: one data set, or a mixture of others.

    Attributes:
        load: takes split, answer format, arguments, size and seed; None for a mixture.
        answer_format: what prompts ask for when the user names none.
        reward: what is trained on when the user names none.
        measures: rewards that measure the strict and the lenient accuracy.
        train: the loader's name of the training split, None where the set has none.
        test: the loader's name of the held-out split.
        train_size: problems of the training split, None where there is none or a file has to be read.
        parts: names of the mixed sets.
    """

    load: Callable[[str, str, Asked, int | None, int], Dataset] | None
    answer_format: str
    reward: str
    measures: tuple[str, str]
    train: str | None = "train"
    test: str | None = None
    train_size: int | None = None
    parts: tuple[str, ...] = ()


def _arithmetic(split: str, answer_format: str, args: Asked, size: int | None, seed: int) -> Dataset:
    size = size or SETS["arithmetic"].train_size
    return built_in(args.difficulty, split, answer_format, args.system_prompt, True, size, seed)


def _loaded(task: Task) -> Callable[[str, str, Asked, int | None, int], Dataset]:
    def load(split: str, answer_format: str, args: Asked, size: int | None, seed: int) -> Dataset:
        return task.load(split, answer_format, args.system_prompt, True, size, seed)

    return load


def _read_as(task: Task, load: Callable[..., Dataset] | None, **fields: Any) -> Problems:
    """Problems that are asked and read as a task of the evaluation."""
    return Problems(load, task.answer_format, task.strict, (task.strict, task.lenient), **fields)


def _row(name: str) -> Problems:
    task, size = TASKS[name], SETS[name].train_size
    load = _arithmetic if name == "arithmetic" else _loaded(task)
    return _read_as(task, load, train="train" if size else None, test=task.split, train_size=size)


def _mixture(*parts: str, task: str) -> Problems:
    """All problems of several sets, asked and read as those of one."""
    return _read_as(TASKS[task], None, train_size=sum(SETS[part].train_size or 0 for part in parts), parts=parts)


DATASETS: dict[str, Problems] = {
    **{name: _row(name) for name in SETS},
    "gsm8k+math": _mixture("gsm8k", "math", task="math"),
}

TRAINED_ON = tuple(name for name, row in DATASETS.items() if row.train is not None)


def problems_named(field: str, name: str, names: Collection[str] = DATASETS) -> Problems:
    """A row of `DATASETS`, or one made of the user's file.

    Args:
        field: the option that names it, for the message.
        name: name of a row, or path of a JSON Lines file that ends in ".jsonl".
        names: rows that fit.

    Returns:
        The row.

    Raises:
        ValueError: it is neither.
        FileNotFoundError: there is no such file.
    """
    if name in names:
        return DATASETS[name]
    task = task_of_file(field, name, names)
    return _read_as(task, _loaded(task), train=task.split, test=task.split)


def load_problems(args: Asked, split: str, size: int | None, seed: int, dataset: str | None = None) -> Dataset:
    """Rows of one split of a data set.

    Args:
        args: the recipe's arguments; their `answer_format` holds for all training splits, for `dataset` of the
            arguments and its parts, and for files.
        split: "train" or "test".
        size: rows, or None for all (2,048 of the built-in problems).
        seed: of the order.
        dataset: a row of `DATASETS` or a file; None takes that of the arguments.

    Returns:
        `prompt`, `answer`, `question`, `solution` and `answer_format`, and what else the data set has.

    Raises:
        ValueError: the data set has no such split, or fewer rows.
    """
    name = dataset or args.dataset
    row, trained_on = problems_named("dataset", name), problems_named("dataset", args.dataset)
    if row.parts:
        return _mixed([load_problems(args, split, None, seed, part) for part in row.parts], name, size, seed)
    own = row.train if split == "train" else row.test
    if row.load is None or own is None:
        raise ValueError(f"`dataset` {name!r} has no {split} split; it must be one of: {', '.join(TRAINED_ON)}.")
    # Out of domain is a named set that only measures; a file of the user's is asked as what is trained on
    trained = split == "train" or name == args.dataset or name in trained_on.parts or name not in DATASETS
    chosen = args.answer_format or trained_on.answer_format
    return row.load(own, chosen if trained else row.answer_format, args, size, seed)


def _mixed(parts: Sequence[Dataset], name: str, size: int | None, seed: int) -> Dataset:
    """All rows of several sets in one random order, of which the first `size` are taken."""
    rows = concatenate_datasets([part.select_columns(COLUMNS) for part in parts]).shuffle(seed=seed)
    if size is not None and not 1 <= size <= len(rows):
        raise ValueError(f"size is {size}; {name} has from 1 to {len(rows)} problems to draw.")
    return rows if size is None else rows.select(range(size))
