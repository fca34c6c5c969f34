"""Bad baselines: absent, broken, or measured otherwise; and none that CI makes for itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_input import refused
from tiny_run import Tiny, advprune

from deploy.verdicts import Verdicts, read, write

pytest_plugins = ["bad_input_fixtures", "tiny_fixtures"]


def with_protocol(**changes: Any) -> Callable[[Verdicts], Verdicts]:
    def change(found: Verdicts) -> Verdicts:
        protocol = {**found.protocol, **changes}
        return Verdicts(protocol, found.artefact, found.correct, reason="test")

    return change


def shorter(found: Verdicts) -> Verdicts:
    correct = {name: flags[:-1] for name, flags in found.correct.items()}
    protocol = {**found.protocol, "images": "0" * 64}
    return Verdicts(protocol, found.artefact, correct, reason="test")


OTHERS = {
    "other data": with_protocol(data="0" * 64),
    "other images": with_protocol(images="0" * 64),
    "another eps": with_protocol(threat={"norm": "linf", "eps": 0.01, "low": 0.0, "high": 1.0}),
    "another norm": with_protocol(threat={"norm": "l2", "eps": 0.15, "low": 0.0, "high": 1.0}),
    "another seed": with_protocol(seed=12345),
    "fewer images": shorter,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_baseline_that_was_measured_otherwise(
    kind: str, tiny: Tiny, tmp_path: Path, empty_folder: Path
) -> None:
    write(tmp_path / "base.json", OTHERS[kind](read(tiny.verdicts("int8"))))
    refused("gate", tiny.run, "--baseline", tmp_path / "base.json", code=12)


def test_a_baseline_that_is_none(tiny: Tiny, tmp_path: Path, empty_folder: Path) -> None:
    base = tmp_path / "base.json"
    good = tiny.verdicts("int8").read_text()
    for text in ("", "[]", good[:-40], good.replace("clean", "dirty", 1), "[" * 100_000):
        base.write_text(text)
        refused("gate", tiny.run, "--baseline", base, code=65, says=("base.json",))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused("gate", tiny.run, "--baseline", tmp_path / "loop", code=12, says=("no such file",))


def test_a_baseline_is_never_made_by_ci(
    tiny: Tiny, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    words = ("gate", tiny.run, "--baseline", "b.json", "--update-baseline", "--reason", "test")
    refused(*words, code=2, says=("CI is set",))
    monkeypatch.setenv("CI", "false")
    assert advprune(*words).code == 0
