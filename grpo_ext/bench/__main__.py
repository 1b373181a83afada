"""`python -m grpo_ext.bench NAME`: the benchmarks by name."""

from collections.abc import Callable, Sequence

from grpo_ext.bench import generate, step, sync
from grpo_ext.launch import run

BENCHMARKS: dict[str, Callable[[Sequence[str]], int]] = {
    "generate": generate.main,
    "step": step.main,
    "sync": sync.main,
}


def main(argv: Sequence[str]) -> int:
    """Hand the words after the name to the benchmark.

    Args:
        argv: name and arguments.

    Returns:
        Exit code.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(f"python -m grpo_ext.bench {{{','.join(BENCHMARKS)}}} [--help]")
        return 0 if argv else 2
    if argv[0] not in BENCHMARKS:
        raise ValueError(f"There is no benchmark {argv[0]!r}; it must be one of: {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[argv[0]](argv[1:])


if __name__ == "__main__":
    run(main)
