"""CMATH (Wei et al., arXiv 2306.16636): Chinese elementary-school word problems, by grade."""

import datasets

from grpo_ext.data.rows import asked, picked, written
from grpo_ext.data.sources import find
from grpo_ext.rewards.formats import answer_format_named

HUB = "weitianwen/cmath"
FILES = {
    "validation": "cmath_dev.jsonl",
    "test": "cmath_test.jsonl",
}


def cmath(
    split: str = "validation",
    answer_format: str = "chinese",
    system_prompt: str | None = None,
    conversational: bool = True,
    size: int | None = None,
    seed: int = 0,
) -> datasets.Dataset:
    """Load CMATH with prompts that ask for one answer format.

    Args:
        split: "validation" (600 problems on the hub) or "test"; of a file in the folder, as many as it has.
        answer_format: Name of a row of `grpo_ext.rewards.ANSWER_FORMATS`; "chinese" asks in Chinese.
        system_prompt: Text of a system message, or the beginning of a plain prompt.
        conversational: Whether prompts are lists of messages, or else plain strings.
        size: Number of problems to draw at random; `None` takes all, in their order.
        seed: Seed of that draw. With one seed, a smaller draw is the beginning of a larger one.

    Returns:
        Rows with the columns `prompt`; `answer`, the gold number as text; `question`; `solution`, the answer in the
        asked-for format, because the data set has no worked ones; `grade` from 1 to 6; `reasoning_step`, the number
        of steps; and `answer_format`. Score them with `correct_math` or `correct_math_strict`.

    Raises:
        ValueError: An unknown split or format, a size out of range, or a malformed row.
        FileNotFoundError: The data set is neither in the folder GRPO_EXT_DATA nor on the hub.
    """
    if split not in FILES:
        raise ValueError(f"split is {split!r}; CMATH has {' and '.join(FILES)}.")
    row_format = answer_format_named(answer_format)
    rows = find(FILES[split], HUB, None, split, columns=("grade", "input", "golden", "reasoning_step"))
    examples = []
    for row, where in picked(rows, "CMATH", split, size, seed, text=("input", "golden")):
        answer = row["golden"].strip()
        examples.append(
            {
                "prompt": asked(row["input"].strip(), row_format, system_prompt, conversational),
                "answer": answer,
                "question": row["input"],
                "solution": written(answer, row_format, where),
                "grade": row["grade"],
                "reasoning_step": row["reasoning_step"],
                "answer_format": answer_format,
            }
        )
    return datasets.Dataset.from_list(examples)
