"""Datasets whose rows cannot be trained on, or look as if they could not."""

from collections.abc import Callable
from typing import Any

from datasets import Dataset, IterableDataset
from hypothesis import strategies as st

Rows = Callable[[], Any]


def said(text: Any, role: Any = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": text}]


def column(values: list[Any], **others: Any) -> Rows:
    """A dataset of 8 rows whose column `prompt` repeats values."""

    def make() -> Dataset:
        prompts = (values * 8)[:8]
        return Dataset.from_dict({"prompt": prompts, **{name: [value] * 8 for name, value in others.items()}})

    return make


def stream(rows: list[dict[str, Any]]) -> Rows:
    """Rows as they come, which no dataset has looked at."""
    return lambda: IterableDataset.from_generator(_generated, gen_kwargs={"rows": rows})


def _generated(rows: list[dict[str, Any]]) -> Any:
    yield from rows * 8


# Name -> (dataset, words of which a sentence about it must hold one)
DATASETS: dict[str, tuple[Rows, tuple[str, ...]]] = {
    # Columns
    "no columns": (lambda: Dataset.from_dict({}), ("train_dataset",)),
    "no rows": (lambda: Dataset.from_dict({"prompt": []}), ("train_dataset",)),
    "one row": (lambda: Dataset.from_dict({"prompt": ["a"]}), ("train_dataset",)),
    "another column": (lambda: Dataset.from_dict({"question": ["a"] * 8}), ("prompt",)),
    "a list": (lambda: [{"prompt": "a"}] * 8, ("train_dataset",)),
    "a mapping": (lambda: {"prompt": ["a"] * 8}, ("train_dataset",)),
    "a name": (lambda: "gsm8k", ("train_dataset",)),
    "a number": (lambda: 3, ("train_dataset",)),
    "completions column": (column(["a"], completions="x"), ("completions",)),
    "prompts column": (column(["a"], prompts="x"), ("prompts",)),
    "state column": (column(["a"], trainer_state="x"), ("prompt",)),
    "ids column": (column(["a"], completion_ids="x"), ("prompt",)),
    "image column": (column(["a"], image="x"), ("image",)),
    "null images": (column(["a"], images=None), ("images",)),
    "image of messages": (column([said("a")], image="x"), ("image",)),
    "tools column": (column(["a"], tools="x"), ("prompt",)),
    "template column": (column([said("a")], chat_template_kwargs="x"), ("prompt",)),
    # Text
    "a null": (column(["a", None]), ("row 1",)),
    "nulls": (column([None]), ("row 0",)),
    "empty": (column(["a", "", "b"]), ("row 1",)),
    "all empty": (column([""]), ("row 0",)),
    "white space": (column([" \n\t"]), ("prompt",)),
    "control characters": (column(["\x00\x01\x1b[2J\x7f"]), ("prompt",)),
    "right to left": (column(["\u202eabc\u2066"]), ("prompt",)),
    "not in the vocabulary": (column(["汉字🙂"]), ("prompt",)),
    "beyond the window": (column(["a", "b" * 2000]), ("prompt",)),
    "numbers": (column([1, 2]), ("row 0",)),
    "fractions": (column([1.5]), ("row 0",)),
    "truth": (column([True]), ("row 0",)),
    "bytes": (column([b"a"]), ("row 0",)),
    "lists of text": (column([["a"]]), ("row 0",)),
    "lists of numbers": (column([[1]]), ("row 0",)),
    "a message without its list": (column([said("a")[0]]), ("row 0",)),
    # Messages
    "no messages": (column([[]]), ("row 0",)),
    "a row without messages": (column([said("a"), []]), ("row 1",)),
    "a null for messages": (column([said("a"), said("b"), None]), ("row 2",)),
    "a null message": (column([said("a"), [None]]), ("row 1",)),
    "no role": (column([[{"content": "a"}]]), ("row 0",)),
    "no content": (column([[{"role": "user"}]]), ("row 0",)),
    "one without content": (column([said("a"), [{"role": "user"}]]), ("row 1",)),
    "null role": (column([said("a", None)]), ("row 0",)),
    "null content": (column([said(None)]), ("row 0",)),
    "number as content": (column([said(3)]), ("row 0",)),
    "number as role": (column([said("a", 3)]), ("row 0",)),
    "nested messages": (column([[said("a")]]), ("row 0",)),
    "parts": (column([said([{"type": "text", "text": "a"}])]), ("row 0",)),
    "parts without type": (column([said([{"text": "a"}])]), ("row 0",)),
    "unknown role": (column([said("a", "wizard")]), ("prompt",)),
    "the system alone": (column([said("a", "system")]), ("prompt",)),
    "the assistant last": (column([said("a", "assistant")]), ("prompt",)),
    "empty content": (column([said("")]), ("prompt",)),
    "many messages": (column([said("a") * 40]), ("prompt",)),
    # Streams and views, whose rows are looked at when they are drawn
    "stream": (stream([{"prompt": "a"}]), ("prompt",)),
    "stream without prompts": (stream([{"question": "a"}]), ("prompt",)),
    "stream with a null": (stream([{"prompt": None}]), ("prompt",)),
    "stream of numbers": (stream([{"prompt": 3}]), ("prompt",)),
    "stream of empty text": (stream([{"prompt": ""}]), ("prompt",)),
    "stream of half characters": (stream([{"prompt": "a\ud800"}]), ("prompt",)),
    "stream of text and messages": (stream([{"prompt": "a"}, {"prompt": said("b")}]), ("prompt",)),
    "stream that lacks it later": (stream([{"prompt": "a"}, {"question": "b"}]), ("prompt",)),
    "stream of empty lists": (stream([{"prompt": []}]), ("prompt",)),
    "stream of half messages": (stream([{"prompt": said("\udfff")}]), ("prompt",)),
    "stream of bad parts": (stream([{"prompt": said(["x"])}]), ("prompt",)),
    "transform": (lambda: column(["a"])().with_transform(lambda rows: {"prompt": rows["prompt"]}), ("prompt",)),
    "transform to nulls": (lambda: column(["a"])().with_transform(lambda rows: {"prompt": [None] * 8}), ("prompt",)),
    "transform to other columns": (lambda: column(["a"])().with_transform(lambda rows: {"q": ["x"] * 8}), ("prompt",)),
    "shuffled nulls": (lambda: column(["a", None])().shuffle(seed=0), ("row ",)),
    "nulls left out": (lambda: column(["a", None])().select([0, 2, 4, 6]), ("prompt",)),
    "torch format": (lambda: column(["a"], number=1)().with_format("torch"), ("prompt",)),
    # Answers
    "no answer": (column(["a"], answer=None), ("answer", "correct")),
    "huge answer": (column(["a"], answer="9" * 100_000), ("answer", "correct")),
    "nested answer": (column(["a"], answer=[["1"]]), ("answer", "correct")),
    "number as answer": (column(["a"], answer=3), ("answer", "correct")),
    "control answer": (column(["a"], answer="\x00\x1b"), ("answer", "correct")),
}

_texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
_messages = st.lists(
    st.one_of(
        st.none(),
        st.fixed_dictionaries(
            {"role": st.one_of(st.none(), st.sampled_from(["user", "assistant", "wizard", ""]))},
            optional={"content": st.one_of(st.none(), _texts)},
        ),
    ),
    max_size=3,
)
# Columns of prompts, each of one kind, as a dataset can hold them
COLUMNS = st.one_of(
    st.lists(st.one_of(st.none(), _texts), min_size=1, max_size=6),
    st.lists(st.one_of(st.none(), _messages), min_size=1, max_size=6),
    st.lists(st.one_of(st.none(), st.integers(-3, 3)), min_size=1, max_size=4),
    st.lists(st.lists(_texts, max_size=2), min_size=1, max_size=4),
)
