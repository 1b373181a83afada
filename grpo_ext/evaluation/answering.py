"""All answers of one model: what is stored is kept, the rest is made batch by batch."""

from collections.abc import Callable, Sequence

from tqdm.auto import tqdm

from grpo_ext.evaluation.questions import Answer, Question, batches
from grpo_ext.evaluation.store import SampleStore

# Takes a batch, gives its answers.
Complete = Callable[[Sequence[Question]], list[Answer]]


def answer_all(
    store: SampleStore,
    asked: Sequence[Question],
    batch_size: int,
    start: Callable[[], Complete],
    title: str = "",
    quiet: bool = False,
) -> list[Answer]:
    """Answer what has no stored answer, and give all answers.

    A batch of which some answers are stored is made again as a whole, because rounding depends on what stands beside
    an answer; what was stored stays. So an evaluation that was killed has the same answers as one that was not,
    wherever the same batch gives the same answers twice.

    Args:
        store: of the model.
        asked: all questions.
        batch_size: questions at a time.
        start: loads the model; called only when an answer is missing.
        title: of the progress bar.
        quiet: whether to show none.

    Returns:
        The answers in the order of the questions.
    """
    missing = len(store.missing(asked))
    if missing:
        complete = start()
        with tqdm(total=len(asked), initial=len(asked) - missing, desc=title, unit="answer", disable=quiet) as bar:
            for batch in batches(asked, batch_size):
                left = len(store.missing(batch))
                if left:
                    store.append(batch, complete(batch))
                    bar.update(left)
    return [store.answer(question) for question in asked]
