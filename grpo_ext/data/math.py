"""MATH (Hendrycks et al., arXiv 2103.03874): competition problems with answers in LaTeX.

Held out are the 500 problems of MATH-500 (Lightman et al., arXiv 2305.20050); the other 12,000 are for training.
"""

import datasets

from grpo_ext.data.rows import asked, picked, written
from grpo_ext.data.sources import find
from grpo_ext.rewards.formats import answer_format_named

HUB = {
    "train": "nlile/hendrycks-MATH-benchmark",
    "test": "HuggingFaceH4/MATH-500",
}
FILES = {
    "train": "math_train.jsonl",
    "test": "math500_dev.jsonl",
}


def math(
    split: str = "test",
    answer_format: str = "boxed",
    system_prompt: str | None = None,
    conversational: bool = True,
    size: int | None = None,
    seed: int = 0,
) -> datasets.Dataset:
    r"""Load MATH with prompts that ask for one answer format.

    Args:
        split: "train" (12,000 problems on the hub) or "test" (MATH-500); of a file in the folder, as many as it has.
        answer_format: Name of a row of `grpo_ext.rewards.ANSWER_FORMATS`.
        system_prompt: Text of a system message, or the beginning of a plain prompt.
        conversational: Whether prompts are lists of messages, or else plain strings.
        size: Number of problems to draw at random; `None` takes all, in their order.
        seed: Seed of that draw. With one seed, a smaller draw is the beginning of a larger one.

    Returns:
        Rows with the columns `prompt`; `answer`, the gold answer in LaTeX; `question`; `solution`, the worked answer,
        its last line in the asked-for format; `subject`; `level` from 1 to 5; and `answer_format`. Score them with
        `correct_math` or `correct_math_strict`.

    Raises:
        ValueError: An unknown split or format, a size out of range, or a malformed row.
        FileNotFoundError: The data set is neither in the folder GRPO_EXT_DATA nor on the hub.
    """
    if split not in FILES:
        raise ValueError(f"split is {split!r}; MATH has {' and '.join(FILES)}.")
    row_format = answer_format_named(answer_format)
    rows = find(FILES[split], HUB[split], None, split, columns=("problem", "solution", "answer", "subject", "level"))
    examples = []
    for row, where in picked(rows, "MATH", split, size, seed, text=("problem", "solution", "answer")):
        answer = row["answer"].strip()
        examples.append(
            {
                "prompt": asked(row["problem"].strip(), row_format, system_prompt, conversational),
                "answer": answer,
                "question": row["problem"],
                "solution": f"{row['solution'].rstrip()}\n{written(answer, row_format, where)}",
                "subject": row["subject"],
                "level": row["level"],
                "answer_format": answer_format,
            }
        )
    return datasets.Dataset.from_list(examples)
