"""`grpo-ext COMMAND`, also as `python -m grpo_ext COMMAND`: the commands by name."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from grpo_ext.visible import visible

# Name -> (module with a `main`, what it is for). A module is imported when its command is asked for, because `doctor`
# must also answer where TRL cannot be imported.
COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("grpo_ext.doctor", "see which back ends work in this environment, and how to mend the others"),
    "plan": ("grpo_ext.plan.command", "work out a config before it runs: batch, tokens, steps, memory, mistakes"),
    "report": ("grpo_ext.report.command", "one HTML file that shows what runs learned, with curves and completions"),
    "push": ("grpo_ext.hub.push", "upload a finished run to the Hugging Face hub: weights, tokenizer, card"),
}


def usage() -> str:
    """The text of `grpo-ext --help`."""
    lines = [f"  {name:10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: grpo-ext COMMAND [--help]",
            "",
            *lines,
            "",
            "A run itself is a recipe: python -m grpo_ext.recipes.gsm8k --help",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the words after the command's name to it; an expected error becomes one sentence.

    Args:
        argv: the words after `grpo-ext`; None takes those of this process.

    Returns:
        Exit code: the command's own, or 2 for a wrong call.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    name = words[0]
    if name not in COMMANDS:
        print(f"error: There is no command {name!r}; it must be one of: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    # Libraries warn each other about names that no user of a command has written
    warnings.filterwarnings("ignore", module="transformers|trl|peft|bitsandbytes")
    try:
        return import_module(COMMANDS[name][0]).main(words[1:])
    except ImportError as error:
        print(f"error: `{name}` cannot be loaded ({error}); `grpo-ext doctor` says what is missing.", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"error: {visible(str(error))}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
