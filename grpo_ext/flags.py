"""Words of a command line that are needed before anything heavy is imported."""

from collections.abc import Sequence


def flag(argv: Sequence[str], name: str) -> str | None:
    """Value of `--name VALUE` or `--name=VALUE`.

    Args:
        argv: the words after the command.
        name: the flag without its dashes.

    Returns:
        The last one given, or None.
    """
    value = None
    for index, word in enumerate(argv):
        if word == f"--{name}" and index + 1 < len(argv):
            value = argv[index + 1]
        elif word.startswith(f"--{name}="):
            value = word.partition("=")[2]
    return value


def names_a_run(argv: Sequence[str]) -> bool:
    """Whether a command line names a config or a model, with underscores or hyphens; without them it is a quickstart.

    Args:
        argv: the words after the command.
    """
    return any(word.replace("_", "-").startswith(("--config", "--model-name-or-path")) for word in argv)
