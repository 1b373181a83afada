"""How good models are: `python -m grpo_ext.recipes.evaluate MODEL [MODEL ...] --task gsm8k --samples 8`.

Greedy pass@1, pass@k and maj@k with confidence intervals, by the strict and by the lenient reader, and which
differences between the models are beyond noise. The same command again goes on where a killed one was. Left out:
several GPUs (start one command for each model, or vLLM servers), and few-shot prompts.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from grpo_ext.checks import at_least, check_output_dir
from grpo_ext.evaluation.answering import answer_all
from grpo_ext.evaluation.estimators import LEVEL, RESAMPLES
from grpo_ext.evaluation.generators import ENGINES, Generation, Generators
from grpo_ext.evaluation.questions import questions
from grpo_ext.evaluation.scores import Comparison, Result, compare, default_ks, read_answers, summarise
from grpo_ext.evaluation.store import SampleStore, write_scored
from grpo_ext.evaluation.subjects import Subject, distinct, subject_named
from grpo_ext.evaluation.tables import as_json, comparison_as_json, differences_table, notes, results_table, verdicts
from grpo_ext.evaluation.tasks import ENDING, TASKS, Task, task_named
from grpo_ext.hub import without_token
from grpo_ext.launch import run
from grpo_ext.models.policy import DTYPES
from grpo_ext.report import versions, write_json
from grpo_ext.rewards import ANSWER_FORMATS
from grpo_ext.rollouts.vllm.requests import Sampling
from grpo_ext.trust import without_password

WIDTH = 110
# Options that not every engine reads -> those that do
READ_BY = {
    "vllm_gpu_memory_utilization": ("vllm",),
    "vllm_max_model_length": ("vllm",),
    "dtype": ("transformers", "vllm"),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m grpo_ext.recipes.evaluate",
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add("models", nargs="+", metavar="MODEL", help="Folder or hub name of a model, or of an adapter.")
    add("--task", default="gsm8k", help=f"One of {', '.join(TASKS)}, or a file of yours that ends in {ENDING}.")
    add("--split", help="Split of the task; unset: its held-out one.")
    add("--problems", type=int, help="Problems, drawn at random; unset: all, of the built-in ones 256.")
    add("--problem_seed", type=int, default=1, help="Of that draw; 1 is what the recipes draw with.")
    add("--answer_format", choices=list(ANSWER_FORMATS), help="What prompts ask for; unset: the task's own.")
    add("--system_prompt", help="System message of the prompts.")
    add("--plain", action="store_true", help="Prompts as plain text, for base models without a chat template.")
    add("--samples", type=int, default=0, help="Samples of each problem, for pass@k and maj@k.")
    add("--k", type=int, nargs="+", help="Values of k; unset: powers of two up to --samples.")
    add("--no_greedy", action="store_true", help="Leave the greedy answers out.")
    add("--temperature", type=float, default=0.7, help="Of the samples; DeepSeekMath sec. 5.2.2: 0.7.")
    add("--top_p", type=float, default=1.0, help="Of the samples.")
    add("--top_k", type=int, default=0, help="Of the samples; 0 keeps all tokens.")
    add("--min_p", type=float, default=0.0, help="Of the samples.")
    add("--max_completion_length", type=int, default=512, help="Tokens of an answer at most.")
    add("--seed", type=int, default=0, help="Of the samples.")
    add("--engine", default="transformers", choices=list(ENGINES), help="What generates; server: --vllm_server_urls.")
    add("--vllm_server_urls", nargs="+", help="Addresses of stock vLLM servers.")
    add("--vllm_gpu_memory_utilization", type=float, default=0.85, help="The engine's share of the device's memory.")
    add("--vllm_max_model_length", type=int, help="The engine's window; unset: the model's own.")
    usual = ", ".join(f"{engine} {size}" for engine, size in ENGINES.items())
    add("--batch_size", type=int, help=f"Answers at a time; unset: {usual}.")
    add("--dtype", default="bfloat16", choices=list(DTYPES), help="Of the weights.")
    add("--base_model", help="Base of adapters; unset: what their configs name.")
    add("--trust_remote_code", action="store_true", help="Let code that comes with a model run.")
    add("--confidence", type=float, default=LEVEL, help="Of the intervals.")
    add("--resamples", type=int, default=RESAMPLES, help="Draws of the bootstrap.")
    add("--output_dir", help="Results and samples; unset: runs/evaluate/TASK.")
    return made


def checked(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on other options, and refuse what cannot be.

    Args:
        args: the command line.

    Returns:
        The same.

    Raises:
        ValueError: an option that does not fit; the message names it.
    """
    least = {"problems": 1, "samples": 0, "max_completion_length": 1, "batch_size": 1, "resamples": 100, "top_k": 0}
    for name, lowest in least.items():
        if (value := getattr(args, name)) is not None:
            at_least(name, value, lowest)
    for name, fits in {
        "temperature": args.temperature > 0,
        "top_p": 0 < args.top_p <= 1,
        "min_p": 0 <= args.min_p < 1,
        "confidence": 0 < args.confidence < 1,
    }.items():
        if not fits:
            wanted = "above 0 (the greedy answers are there without it)" if name == "temperature" else "a share"
            raise ValueError(f"`{name}` is {getattr(args, name)}; it must be {wanted}.")
    if args.no_greedy and not args.samples:
        raise ValueError("`no_greedy` leaves nothing to do without `samples`; give --samples a number.")
    args.k = sorted(set(args.k)) if args.k else default_ks(args.samples)
    if args.k and not 1 <= args.k[0] <= args.k[-1] <= args.samples:
        raise ValueError(f"`k` is {args.k}; each must be from 1 to `samples`, which is {args.samples}.")
    if args.vllm_server_urls and args.engine == "transformers":
        args.engine = "server"
    if (args.engine == "server") != bool(args.vllm_server_urls):
        raise ValueError("`engine` 'server' and `vllm_server_urls` belong together; name the servers' addresses.")
    for name, engines in READ_BY.items():
        if args.engine not in engines and getattr(args, name) != parser().get_default(name):
            wanted = " or ".join(map(repr, engines))
            raise ValueError(f"`{name}` does nothing with `engine` {args.engine!r}; it is for {wanted}, leave it out.")
    for url in args.vllm_server_urls or ():
        without_password(url, "vllm_server_urls")
    args.batch_size = args.batch_size or ENGINES[args.engine]
    args.output_dir = args.output_dir or str(Path("runs", "evaluate", Path(args.task).stem))
    return args


def subjects_of(args: argparse.Namespace) -> list[Subject]:
    """The models that the command line names.

    Args:
        args: the command line.

    Raises:
        OSError: one is not found, or its base is not.
        ValueError: two would share a folder, or there is a base but no adapter.
    """
    subjects = [subject_named(name, args.base_model) for name in args.models]
    distinct(subjects)
    if args.base_model and not any(subject.adapter for subject in subjects):
        raise ValueError("`base_model` is the base of adapters, and none of the models is one; leave it out.")
    return subjects


def problems_of(args: argparse.Namespace, task: Task) -> list[dict[str, Any]]:
    """The task's rows, as the command line wants them.

    Args:
        args: the command line.
        task: which.
    """
    wanted = args.answer_format or task.answer_format
    split = args.split or task.split
    return list(task.load(split, wanted, args.system_prompt, not args.plain, args.problems, args.problem_seed))


def settings(args: argparse.Namespace, subject: Subject) -> dict[str, Any]:
    """Everything that a stored answer depends on; the batch size only rounds, and more samples are more.

    Args:
        args: the command line.
        subject: the model.
    """
    names = ("task", "engine", "dtype", "temperature", "top_p", "top_k", "min_p", "max_completion_length", "seed")
    found: dict[str, Any] = {name: getattr(args, name) for name in names}
    return found | {"model": subject.name, "weights": subject.fingerprint()}


def generation(args: argparse.Namespace) -> Generation:
    """How the command line wants answers to be made.

    Args:
        args: the command line.
    """
    length = args.max_completion_length
    return Generation(
        Sampling(args.temperature, args.top_p, args.top_k, args.min_p, max_tokens=length),
        args.seed,
        args.engine,
        args.dtype,
        args.plain,
        args.vllm_server_urls or (),
        args.vllm_gpu_memory_utilization,
        args.vllm_max_model_length,
        args.trust_remote_code,
    )


def measure(
    args: argparse.Namespace, subject: Subject, task: Task, rows: list[dict[str, Any]], generators: Generators
) -> Result:
    """One model from its name to its figures.

    Args:
        args: the command line.
        subject: the model.
        task: what is asked.
        rows: problems.
        generators: load the model.
    """
    folder = Path(args.output_dir) / subject.label
    asked = questions(rows, not args.no_greedy, args.samples)
    store = SampleStore(folder, settings(args, subject))
    answers = answer_all(store, asked, args.batch_size, lambda: generators.start(subject), subject.name)
    readings = {reader: read_answers(asked, answers, rows, reward) for reader, reward in task.readers.items()}
    write_scored(folder / "scored.jsonl", asked, answers, rows, readings)
    return summarise(subject.name, asked, answers, readings, args.k, args.confidence, args.resamples)


def show(results: Sequence[Result], comparisons: Sequence[Comparison], title: str) -> None:
    """Print the tables and what must be known to read them.

    Args:
        results: of all models.
        comparisons: of all pairs.
        title: headline.
    """
    console = Console()
    # A log file has no width of its own
    console = Console(width=None if console.is_terminal else max(WIDTH, console.width))
    console.print(results_table(results, title))
    if comparisons:
        console.print(differences_table(results, comparisons))
    for line in [*(verdicts(comparisons) if comparisons else []), *notes(results)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def main(argv: Sequence[str]) -> int:
    """Load the problems, answer them with each model, read the answers, compare, write.

    Args:
        argv: the words after the command.

    Returns:
        Exit code: 0, or 130 when it was interrupted.
    """
    started = time.time()
    args = checked(parser().parse_args(list(argv)))
    folder, task = Path(args.output_dir), task_named(args.task)
    check_output_dir(folder)
    rows = problems_of(args, task)
    subjects = subjects_of(args)
    generators = Generators(generation(args), subjects)
    try:
        results = [measure(args, subject, task, rows, generators) for subject in subjects]
    except KeyboardInterrupt:
        print(f"Stopped; the same command goes on from the samples in {folder}", flush=True)
        return 130
    except torch.OutOfMemoryError as error:
        raise ValueError(
            "the device's memory does not suffice; the same command with a smaller --batch_size goes on from here."
        ) from error
    finally:
        generators.close()
    comparisons = compare(results, args.confidence, args.resamples)
    show(results, comparisons, f"{args.task}, {len(rows)} problems, {args.confidence:.0%} intervals")
    summary = {
        "task": args.task,
        "problems": len(rows),
        "confidence": args.confidence,
        "models": [as_json(result) for result in results],
        "differences": [comparison_as_json(found) for found in comparisons],
        "command": shlex.join(["python", "-m", "grpo_ext.recipes.evaluate", *without_token(argv)]),
        "arguments": vars(args),
        "versions": versions(),
        "python": sys.version.split()[0],
        "seconds": round(time.time() - started, 1),
    }
    write_json(folder / "results.json", summary)
    print(f"{summary['seconds']:.0f} s; results.json and the samples of each model in {folder}", flush=True)
    return 0


if __name__ == "__main__":
    run(main)
