"""What is read from elsewhere has one meaning and a depth that everything behind can walk."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import strict_json
from deploy.strict_json import DEEPEST

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
documents = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(documents)
def test_everything_else_reads_as_json_does(document: Any) -> None:
    text = json.dumps(document)
    assert strict_json.loads(text) == strict_json.loads(text.encode()) == document


@pytest.mark.parametrize("start, end", [("[", "]"), ('{"a":', "}")])
def test_the_depth_is_bounded_and_does_not_hang_on_the_stack(start: str, end: str) -> None:
    def nested(depth: int) -> str:
        return start * depth + "0" + end * depth

    assert strict_json.loads(nested(DEEPEST)) == json.loads(nested(DEEPEST))
    for depth in (DEEPEST + 1, 900, 60_000):
        with pytest.raises(ValueError, match=f"deeper than {DEEPEST}"):
            strict_json.loads(nested(depth))


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "a": 2}}]'])
def test_a_key_that_comes_twice_is_refused_at_any_depth(text: str) -> None:
    with pytest.raises(ValueError, match="twice"):
        strict_json.loads(text)
