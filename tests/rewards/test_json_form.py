"""JSON of a given shape."""

import json
import pickle
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ext.rewards import json_reward

SCHEMA = {"city": "string", "people": ["integer", "null"], "place": {"lat": "number", "lon": "number"}}
GOOD = {"city": "Bern", "people": 134_000, "place": {"lat": 46.9, "lon": 7}}


@pytest.mark.parametrize(
    ("text", "whole", "partial"),
    [
        (json.dumps(GOOD), 1.0, 1.0),
        (f"```json\n{json.dumps(GOOD, indent=1)}\n```\n", 1.0, 1.0),
        (json.dumps({**GOOD, "people": None, "more": 1}), 1.0, 1.0),
        (json.dumps({**GOOD, "people": "many"}), 0.0, 0.75),
        (json.dumps({**GOOD, "people": True}), 0.0, 0.75),
        (json.dumps({**GOOD, "people": 1.5}), 0.0, 0.75),
        (json.dumps({**GOOD, "place": [1, 2]}), 0.0, 0.5),
        (json.dumps({**GOOD, "place": {"lat": 1}}), 0.0, 0.75),
        ("{}", 0.0, 0.0),
        ("[1, 2]", 0.0, 0.0),
        ("Here it is: " + json.dumps(GOOD), 0.0, 0.0),
        (json.dumps(GOOD) + "\nDone.", 0.0, 0.0),
        ('{"city": "a", "city": "b"}', 0.0, 0.0),
        ('{"city": "a",}', 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_scores(text: str, whole: float, partial: float) -> None:
    assert json_reward(SCHEMA)([text]) == [whole]
    assert json_reward(SCHEMA, partial=True)([[{"role": "assistant", "content": text}]], prompts=["p"]) == [partial]


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ("object", "{}", "[]"),
        ("array", "[]", "{}"),
        ("string", '"a"', "1"),
        ("integer", "-3", "true"),
        ("integer", "12", "12.0"),
        ("number", "1e3", "NaN"),
        ("number", "3", "1e999"),
        ("boolean", "false", "0"),
        ("null", "null", "0"),
        (["string", "array"], "[1]", "{}"),
        ({}, '{"a": 1}', "[]"),
    ],
)
def test_types(schema: object, good: str, bad: str) -> None:
    assert json_reward(schema)([good, bad]) == [1.0, 0.0]


def test_options() -> None:
    fenced = f"```\n{json.dumps(GOOD)}\n```"
    assert json_reward(SCHEMA, fence=False)([fenced]) == [0.0]
    extra = [json.dumps({**GOOD, "more": 1}), json.dumps({**GOOD, "place": {"lat": 1, "lon": 2, "alt": 3}})]
    assert json_reward(SCHEMA, extra_keys=False, partial=True)([*extra, json.dumps(GOOD)]) == [0.0, 0.0, 1.0]
    assert pickle.loads(pickle.dumps(json_reward(SCHEMA)))([json.dumps(GOOD)]) == [1.0]


@pytest.mark.parametrize("schema", ["text", [], {"a": {"b": "int"}}, 3, ["string", {"a": "string"}]])
def test_a_malformed_schema_is_refused(schema: object) -> None:
    with pytest.raises(ValueError, match=r"schema.* must be one of string, integer"):
        json_reward(schema)


HOSTILE = [
    "[" * 1_000_000,
    '{"a":' * 200_000,
    "1" * 100_000,
    "```json\n" * 100_000,
    " " * 2_000_000,
    "```\n" + "\n```x" * 99_999,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_takes_less_than_a_second(text: str) -> None:
    start = time.process_time()
    assert json_reward(SCHEMA)([text]) == [0.0]
    assert time.process_time() - start < 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_what_parses_as_an_object_scores(value: object) -> None:
    text = json.dumps(value)
    finite = "NaN" not in text.replace('"NaN"', "") and "Infinity" not in text
    if finite:
        assert json_reward("object")([text]) == [float(isinstance(value, dict))]
