"""Words of a command line that are needed before anything heavy is imported."""

from collections.abc import Sequence


def flag(argv: Sequence[str], name: str) -> str | None:
    """Value of `--name VALUE` or `--name=VALUE`, where the name may be written with hyphens.

    Args:
        argv: the words after the command.
        name: the flag without its dashes.

    Returns:
        The last one given, or None.
    """
    value = None
    for index, word in enumerate(argv):
        given, equals, rest = word.partition("=")
        if not given.startswith("--") or given[2:].replace("-", "_") != name:
            continue
        if equals:
            value = rest
        elif index + 1 < len(argv):
            value = argv[index + 1]
    return value


def names_a_run(argv: Sequence[str]) -> bool:
    """Whether a command line names a config or a model; one that does not is a quickstart.

    Args:
        argv: the words after the command.
    """
    return any(flag(argv, name) is not None for name in ("config", "model_name_or_path"))
