"""GSM8K (Cobbe et al., arXiv 2110.14168): grade-school word problems with worked answers."""

import re

import datasets

from grpo_ext.data.rows import asked, picked
from grpo_ext.data.sources import find
from grpo_ext.rewards.formats import HASH, AnswerFormat, answer_format_named
from grpo_ext.rewards.numbers import parse_number

HUB = "openai/gsm8k"
HUB_CONFIG = "main"
FILES = {
    "train": "gsm8k_train.jsonl",
    "test": "gsm8k_test.jsonl",
}

# The data set marks each computation for a calculator: 48/2 = <<48/2=24>>24.
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")


def gsm8k(
    split: str = "train",
    answer_format: str = "hash",
    system_prompt: str | None = None,
    conversational: bool = True,
    size: int | None = None,
    seed: int = 0,
) -> datasets.Dataset:
    """Load GSM8K with prompts that ask for one answer format.

    Args:
        split: "train" (7473 problems) or "test" (1319).
        answer_format: Name of a row of `grpo_ext.rewards.ANSWER_FORMATS`.
        system_prompt: Text of a system message, or the beginning of a plain prompt.
        conversational: Whether prompts are lists of messages, or else plain strings.
        size: Number of problems to draw at random; `None` takes all, in their order.
        seed: Seed of that draw. With one seed, a smaller draw is the beginning of a larger one.

    Returns:
        Rows with the columns `prompt`; `answer`, the gold number as text without commas; `question`; `solution`, the
        worked answer without calculator marks, its last line in the asked-for format; and `answer_format`.

    Raises:
        ValueError: An unknown split or format, a size out of range, or a malformed row.
        FileNotFoundError: The data set is neither in the folder GRPO_EXT_DATA nor on the hub.
    """
    if split not in FILES:
        raise ValueError(f"split is {split!r}; GSM8K has {' and '.join(FILES)}.")
    row_format = answer_format_named(answer_format)
    rows = find(FILES[split], HUB, HUB_CONFIG, split, columns=("question", "answer"))
    examples = []
    for row, where in picked(rows, "GSM8K", split, size, seed):
        question, worked = row["question"], row["answer"]
        if not isinstance(question, str) or not isinstance(worked, str):
            raise ValueError(f"{where}: columns 'question' and 'answer' must both hold text.")
        answer, solution = _gold(worked, row_format, where)
        examples.append(
            {
                "prompt": asked(question.strip(), row_format, system_prompt, conversational),
                "answer": answer,
                "question": question,
                "solution": solution,
                "answer_format": answer_format,
            }
        )
    return datasets.Dataset.from_list(examples)


def _gold(worked: str, row_format: AnswerFormat, where: str) -> tuple[str, str]:
    """Split a worked answer into the gold number and the text that a completion should look like."""
    span = HASH.locate(worked)
    answer = span.answer.replace(",", "") if span else ""
    if span is None or parse_number(answer) is None:
        raise ValueError(f"{where}: column 'answer' must end with a line such as '#### 18', found {worked[-40:]!r}.")
    steps = _CALCULATOR.sub("", worked[: span.start]).rstrip()
    return answer, f"{steps}\n{row_format.render(answer)}"
