"""What the gate writes is read back by whoever asks: people, JUnit, OpenMetrics and GitHub."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from verdict_files import costs, example

from deploy.errors import DeployError
from deploy.gate import evaluate, main
from deploy.gate_outputs import MARKER, tell_github, to_metrics, write_outputs
from deploy.outcome import Check, GateResult
from deploy.verdicts import write


def test_the_files_say_the_same(tmp_path: Path) -> None:
    candidate = example(300, sha="b", attacks=[{"name": "a|`<b>&", "steps": 1}])
    baseline = example(attacks=[{"name": "a|`<b>&", "steps": 1}])
    for side in (candidate, baseline):
        side.correct["a|`<b>&"] = side.correct.pop("square")
        del side.correct["pgd-ce@finetuned"]
    unsure = Check("health", "INCONCLUSIVE", "health: <none>")
    slow = Check("latency", "WARN", "latency: 1.2 times")
    judged = evaluate(candidate, baseline)
    result = replace(judged, checks=(*judged.checks, unsure, slow))
    write_outputs(result, tmp_path)
    content = json.loads((tmp_path / "gate.json").read_text())
    assert (content["schema"], content["status"]) == (2, "FAIL")
    assert content["primary"] == content["rows"][0]
    assert content["primary"]["worse"] == 20
    assert content["primary"]["p"] == 2**-20
    assert content["lines"] == result.lines
    suites = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert suites.attrib == {"tests": "3", "failures": "1", "errors": "1"}
    cases = suites.findall("testsuite/testcase")
    assert [case.get("name") for case in cases] == ["worst against baseline", "health", "latency"]
    assert [[child.tag for child in case] for case in cases] == [
        ["failure"],
        ["error"],
        ["system-out"],
    ]
    assert cases[0][0].get("message") == result.lines[0]
    assert "warning: latency: 1.2 times" in result.lines
    text = (tmp_path / "gate.md").read_text()
    assert text.startswith(f"{MARKER}\n### Gate: FAIL\n")
    assert "`a\\|'<b>&`" in text
    assert "health: &lt;none&gt;" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {10}


def test_a_warning_decides_nothing() -> None:
    good, slow = Check("a", "PASS", "a"), Check("b", "WARN", "b")
    assert GateResult({}, (good, slow)).status == "PASS"
    assert GateResult({}, (slow,)).status == "INCONCLUSIVE"
    assert GateResult({}, (slow, Check("c", "FAIL", "c"))).status == "FAIL"


# OpenMetrics ------------------------------------------------------------------------------------

_NAME = r"[a-zA-Z_][a-zA-Z0-9_]*"
_LABEL = rf'{_NAME}="(?:[^"\\\n]|\\[\\"n])*"'
_SAMPLE = re.compile(rf"({_NAME})\{{({_LABEL}(?:,{_LABEL})*)\}} (-?[0-9][0-9.e+-]*)")
_SIGNS = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


def parsed(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Samples of an OpenMetrics text, read by the rules of its grammar."""
    assert text.endswith("\n# EOF\n")
    family, described, samples = "", set(), {}
    for line in text.splitlines()[:-1]:
        if line.startswith("# "):
            _, kind, name, rest = line.split(" ", 3)
            assert kind in ("TYPE", "HELP", "UNIT")
            if kind == "TYPE":
                assert rest in ("gauge", "stateset")
                assert name not in described, "a family must not be interleaved"
                family = name
                described.add(name)
            if kind == "UNIT":
                assert name.endswith(f"_{rest}")
            assert name == family
            continue
        sample = _SAMPLE.fullmatch(line)
        assert sample, line
        assert sample[1] == family
        labels = {}
        for label in re.findall(_LABEL, sample[2]):
            key, _, value = label.partition("=")
            labels[key] = re.sub(r'\\[\\"n]', lambda found: _SIGNS[found[0]], value[1:-1])
        key = (family, frozenset(labels.items()))
        assert key not in samples
        samples[key] = float(sample[3])
    return samples


def test_metrics_are_open_metrics() -> None:
    name = 'a"b\\n\\'
    sides = []
    for worst, sha in ((300, "b"), (320, "a")):
        side = example(worst, sha=sha, attacks=[{"name": name}], measured=costs())
        side.correct[name] = side.correct.pop("square")
        del side.correct["pgd-ce@finetuned"]
        sides.append(side)
    result = evaluate(*sides)
    samples = parsed(to_metrics(result))

    def value(family: str, **labels: str) -> float:
        return samples[family, frozenset(labels.items())]

    for row in result.rows:
        labels = {"metric": row.metric, "against": "baseline"}
        assert value("advprune_accuracy", **labels, when="before") == row.before
        assert value("advprune_accuracy", **labels, when="after") == row.after
        assert value("advprune_drop", **labels) == row.drop
        assert value("advprune_drop_bound", **labels) == row.bound
        assert value("advprune_p", **labels) == row.p
    assert {row.metric for row in result.rows} == {"worst", "clean", name}
    states = [value("advprune_gate", advprune_gate=s) for s in ("PASS", "FAIL", "INCONCLUSIVE")]
    assert states == [0, 1, 0]
    assert value("advprune_size_bytes", engine="baseline") == 100_000


def test_metrics_without_anything_measured_are_open_metrics_too() -> None:
    assert len(parsed(to_metrics(evaluate(example())))) == 3


# GitHub -----------------------------------------------------------------------------------------


def github(folder: Path) -> dict[str, str]:
    return {
        "GITHUB_ACTIONS": "true",
        "GITHUB_STEP_SUMMARY": str(folder / "summary"),
        "GITHUB_OUTPUT": str(folder / "output"),
    }


def test_github_is_told_what_fails_and_what_warns(tmp_path: Path) -> None:
    odd = (
        Check("odd", "WARN", "100 % odd\r\nand more"),
        Check("open", "INCONCLUSIVE", "who knows"),
        Check("fine", "PASS", "fine"),
    )
    judged = evaluate(example(300, sha="b"), example())
    result = replace(judged, checks=(*judged.checks, *odd))
    (tmp_path / "output").write_text("earlier=1\n")
    failed, *others = tell_github(result, github(tmp_path))
    assert failed.startswith("::error title=gate::worst against baseline: 80.0 %25 → 75.0 %25")
    assert others == [
        "::warning title=gate::100 %25 odd%0D%0Aand more",
        "::error title=gate::who knows",
    ]
    assert (tmp_path / "output").read_text() == "earlier=1\nstatus=FAIL\ndrop=0.050000\n"
    assert "### Gate: FAIL" in (tmp_path / "summary").read_text()


def test_elsewhere_nobody_is_told(tmp_path: Path) -> None:
    quiet = github(tmp_path) | {"GITHUB_ACTIONS": ""}
    assert tell_github(evaluate(example(), example()), quiet) == []
    assert list(tmp_path.iterdir()) == []


def test_a_summary_that_cannot_be_written_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="cannot be written") as refusal:
        tell_github(evaluate(example()), github(tmp_path / "absent"))
    assert refusal.value.exit_code == 74


def test_the_command_tells_github(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[Any]
) -> None:
    for name, value in github(tmp_path).items():
        monkeypatch.setenv(name, value)
    write(tmp_path / "good.json", example())
    write(tmp_path / "bad.json", example(300, sha="b"))
    write(tmp_path / "other.json", example(seed=1))
    good, bad, other = (str(tmp_path / f"{name}.json") for name in ("good", "bad", "other"))
    assert main(["--baseline", good, good]) == 0
    assert "::" not in capsys.readouterr().out
    assert main(["--baseline", good, bad]) == 10
    assert "\n::error title=gate::worst against baseline" in capsys.readouterr().out
    assert main(["--baseline", good, other]) == 12
    refused = capsys.readouterr()
    assert refused.out.startswith("::error title=gate::gate: cannot compare")
    outputs = (tmp_path / "output").read_text().splitlines()
    assert outputs == ["status=PASS", "drop=0.000000", "status=FAIL", "drop=0.050000"]
