"""Verdicts come back from their file as they were, or were never written; so do baselines."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deploy.errors import DeployError
from deploy.gate import evaluate
from deploy.verdicts import Verdicts, read, write

FEW_AND_MANY = pytest.mark.parametrize(
    "examples", [50, pytest.param(3000, marks=pytest.mark.slow, id="many")]
)
LINES = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=8)
ANY_TEXT = LINES | LINES | st.text(max_size=3)
NUMBERS = st.floats(0, 1) | st.integers(0, 255) | st.floats() | st.just(10**400)
DIGESTS = st.sampled_from(["0" * 64, "f" * 64, "0" * 64, "F" * 64, "0" * 63])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def protocols(draw: st.DrawFn, names: list[str]) -> dict[str, Any]:
    return {
        "data": draw(DIGESTS),
        "images": "1" * 64,
        "labels": "2" * 64,
        "threat": {"norm": draw(ANY_TEXT), "eps": draw(NUMBERS), "low": 0.0, "high": 1.0},
        "attacks": [{"name": name, "more": draw(JSON)} for name in names],
        "seed": draw(st.integers() | st.just(0.5)),
        "input": "float32",
    }


@st.composite
def verdicts(draw: st.DrawFn) -> Verdicts:
    """Sound ones mostly, else with one value or another that no file may hold."""
    count = draw(st.integers(1, 40) | st.just(0))
    names = draw(st.lists(ANY_TEXT, max_size=3, unique=True))
    flags = st.lists(st.booleans(), min_size=count, max_size=count)
    made = Verdicts(
        protocol=draw(protocols(names)),
        artefact={"file": "model.onnx", "sha256": draw(DIGESTS), "precision": draw(ANY_TEXT)},
        correct={name: draw(flags) for name in ["clean", *names]},
        health=draw(st.none() | st.just({"checks": 3, "invalid": [], "suspect": ["H9"]})),
    )
    if draw(st.booleans()):
        made = replace(made, reason=draw(ANY_TEXT), previous=draw(st.none() | JSON))
    return made


@FEW_AND_MANY
def test_verdicts_come_back_or_are_not_written(tmp_path: Path, examples: int) -> None:
    path, outcomes = tmp_path / "verdicts.json", set()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(verdicts())
    def holds(made: Verdicts) -> None:
        path.unlink(missing_ok=True)
        try:
            write(path, made)
        except DeployError as error:
            assert error.exit_code == 65 and str(error).isprintable()
            assert not path.exists()
        else:
            assert read(path) == made
            # An engine is no worse than itself, whatever it got right.
            assert evaluate(made, read(path)).status in ("PASS", "INCONCLUSIVE")
        outcomes.add(path.exists())

    holds()
    assert outcomes == {True, False}


@FEW_AND_MANY
def test_any_bytes_are_verdicts_or_refused(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "verdicts.json"

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
    @example(b"[" * 100_000)
    @example(b'{"schema": ' + b"9" * 5000 + b"}")
    @example(b'{"a": "sha256_of_the_above"}')
    @example(b',\n "sha256_of_the_above": "')
    def holds(content: bytes) -> None:
        path.write_bytes(content)
        with pytest.raises(DeployError) as refusal:
            read(path)
        assert refusal.value.exit_code == 65 and str(refusal.value).isprintable()

    holds()
