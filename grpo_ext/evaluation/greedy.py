"""The quick measurement before and after training: greedy answers of a model in memory, nothing stored."""

from typing import Any

from datasets import Dataset

from grpo_ext.evaluation.local import LocalModel
from grpo_ext.evaluation.questions import batches, questions
from grpo_ext.evaluation.scores import GREEDY_MEASURE, read_answers, summarise
from grpo_ext.rollouts.vllm.requests import Sampling


def evaluate(
    model: Any,
    tokenizer: Any,
    rows: Dataset,
    max_new_tokens: int,
    batch_size: int,
    measures: tuple[str, str] = ("correct_strict", "correct"),
) -> dict[str, Any]:
    """Answer each row greedily and compare with its `answer`.

    Args:
        model: policy.
        tokenizer: its tokenizer, padding on the left.
        rows: `prompt`, `answer` and `answer_format`.
        max_new_tokens: tokens at most.
        batch_size: rows at a time.
        measures: names of the strict and the lenient reader among `REWARDS`.

    Returns:
        `accuracy` (strict, the asked-for format) and `accuracy_lenient` (wherever it stands), each with its 95 %
        interval over problems, `accuracy_interval` and `accuracy_lenient_interval` as [low, high]; `mean_length` in
        tokens, the share `truncated` at the limit, and the number of `problems`.

    Raises:
        ValueError: no row has a gold answer that can be read.
    """
    problems = list(rows)
    asked = questions(problems, greedy=True, samples=0)
    local = LocalModel(model, tokenizer, Sampling(max_tokens=max_new_tokens))
    answers = [answer for batch in batches(asked, batch_size) for answer in local.complete(batch)]
    names = dict(zip(("strict", "lenient"), measures, strict=True))
    readings = {reader: read_answers(asked, answers, problems, reward) for reader, reward in names.items()}
    result = summarise("policy", asked, answers, readings, ks=())
    strict, lenient = (result.intervals[reader][GREEDY_MEASURE] for reader in names)
    return {
        "accuracy": strict.value,
        "accuracy_interval": [strict.low, strict.high],
        "accuracy_lenient": lenient.value,
        "accuracy_lenient_interval": [lenient.low, lenient.high],
        "mean_length": result.about["mean_length"],
        "truncated": result.about["truncated"],
        "problems": result.about["problems"],
    }
