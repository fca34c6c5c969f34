"""Where a gate is nearly another: a word more on its line, a file that is not there."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from verdict_files import example

from deploy.errors import DeployError
from deploy.gate import demand_accepted, evaluate, main, read_accepted
from deploy.gate_outputs import (
    refusal_annotations,
    tell_github,
    to_junit,
    to_markdown,
    write_outputs,
)
from deploy.outcome import Check
from deploy.policies import Terms
from deploy.verdicts import write

# The command -------------------------------------------------------------------------------------


@pytest.fixture
def verdicts(tmp_path: Path) -> Path:
    write(tmp_path / "here.json", example(sha="b"))
    return tmp_path / "here.json"


def test_a_policy_that_compares_needs_something_to_compare_with(
    verdicts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(verdicts)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("gate: policy regress compares; add --baseline FILE, or name")
    with pytest.raises(DeployError, match="policy regress and ship compares"):
        demand_accepted(Terms(("regress", "ship")), None, None)
    demand_accepted(Terms(("regress",)), None, verdicts)
    demand_accepted(Terms(("floor",), floor=0.5), None)


def test_a_baseline_that_is_not_there_is_made_first(verdicts: Path) -> None:
    absent = verdicts.with_name("absent.json")
    with pytest.raises(DeployError, match=r"--release .*absent\.json: no such file") as refusal:
        read_accepted("--release", absent)
    assert refusal.value.exit_code == 12
    assert read_accepted("--baseline", None) is None
    found = read_accepted("--baseline", verdicts)
    assert found is not None and found.artefact == example(sha="b").artefact


@pytest.mark.parametrize(
    "words",
    [
        ["--reason", "why"],
        ["--accept-regression"],
        ["--update-baseline"],
        ["--update-baseline", "--reason", "why"],
        ["--margin", "much"],
    ],
)
def test_words_that_do_not_go_together_are_refused(
    verdicts: Path, words: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        main([str(verdicts), *words])
    assert refusal.value.code == 2
    assert capsys.readouterr().err.startswith("usage: deploy.gate ")


def test_every_option_reaches_the_terms(verdicts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = verdicts.parent / "out"
    folder.mkdir()
    write(verdicts.with_name("base.json"), example())
    write(verdicts.with_name("float.json"), example(sha="c", precision="fp32"))
    words = ["--baseline", str(verdicts.with_name("base.json")), "--release", str(verdicts)]
    words += ["--float", str(verdicts.with_name("float.json")), "--out", str(folder)]
    words += ["--policy", "regress", "--policy", "ship", "--margin", "0.05", "--floor", "0.5"]
    words += ["--ratio", "0.9", "--all-metrics", "--hard", "size", "--hard", "latency"]
    assert main([str(verdicts), *words]) == 11  # sizes are asked for, and nobody has measured any
    content = json.loads((folder / "gate.json").read_text())
    assert content["policies"] == {"regress": 0.05, "ship": 0.05, "floor": 0.5, "ratio": 0.9}
    names = [check["name"] for check in content["checks"]]
    assert names == [
        "worst against baseline",
        "worst against release",
        "worst against baseline (ship)",
        "worst against release (ship)",
        "worst above the floor",
        "worst as a share of fp32",
        *(
            f"{metric} against {against}"
            for against in ("baseline", "release")
            for metric in ("clean", "pgd-ce@finetuned", "square")
        ),
        "size against baseline",
        "latency against baseline",
    ]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "gate INCONCLUSIVE"
    assert "  clean against baseline: 97.5 % → 97.5 % (p = 1)" in said


def test_what_decides_nothing_is_for_information(
    verdicts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(verdicts), "--baseline", str(verdicts)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "gate PASS"
    assert "  square against baseline: 80.0 % → 80.0 % (p = 1, for information)" in said
    assert not any("  worst" in line for line in said)


def test_a_baseline_is_written_by_the_command(
    verdicts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    base = verdicts.parent / "deep" / "base.json"
    words = ["--baseline", str(base), "--update-baseline", "--reason", "first"]
    assert main([str(verdicts), *words]) == 0
    assert capsys.readouterr().out.startswith(f"{base}: updated\n")
    worse = verdicts.with_name("worse.json")
    write(worse, example(300, sha="d"))
    assert main([str(worse), *words]) == 10
    assert main([str(worse), *words, "--accept-regression"]) == 0


def test_a_log_that_is_not_utf_8_shows_what_it_can(
    verdicts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    stream = SimpleNamespace(encoding="ascii", write=lines.append)
    monkeypatch.setattr("sys.stdout", stream)
    assert main([str(verdicts), "--baseline", str(verdicts)]) == 0
    assert any("97.5 % ? 97.5 %" in line for line in lines)
    stream.encoding = None  # as of streams that other tools put there
    assert main([str(verdicts), "--baseline", str(verdicts)]) == 0
    assert any("97.5 % → 97.5 %" in line for line in lines)


# What is written down ----------------------------------------------------------------------------


def test_a_check_that_passes_is_a_case_without_anything_in_it() -> None:
    (case,) = ElementTree.fromstring(to_junit(evaluate(example(sha="b"), example()))).iter(
        "testcase"
    )
    assert (case.get("name"), list(case)) == ("worst against baseline", [])


def test_github_without_its_files_is_still_told(tmp_path: Path) -> None:
    told = tell_github(evaluate(example(300, sha="b"), example()), {"GITHUB_ACTIONS": "true"})
    assert [line[:20] for line in told] == ["::error title=gate::"]
    assert list(refusal_annotations(DeployError("gone", 12), {})) == []


def test_of_many_differences_three_are_named(verdicts: Path) -> None:
    other = example(seed=1, data="x", images="y", labels="z", input="none")
    with pytest.raises(DeployError) as refusal:
        evaluate(example(sha="b"), other)
    message = str(refusal.value)
    assert message.count(" there, ") == 3
    assert ") and 2 more differ; verify both alike" in message


def test_no_number_that_json_lacks_is_written_down(tmp_path: Path) -> None:
    result = replace(evaluate(example(sha="b"), example()), minimum_detectable_drop=math.nan)
    with pytest.raises(ValueError, match="JSON"):
        write_outputs(result, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_for_a_baseline_that_cannot_be_made_is_refused(
    verdicts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    words = ["--baseline", str(verdicts / "base.json"), "--update-baseline", "--reason", "why"]
    assert main([str(verdicts), *words]) == 73
    assert "here.json: cannot be created (File exists)" in capsys.readouterr().err


def test_an_engine_as_good_as_the_one_before_needs_nobody_s_leave(
    verdicts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    base, words = verdicts.with_name("base.json"), ["--update-baseline", "--reason", "why"]
    write(base, example())
    assert main([str(verdicts), "--baseline", str(base), *words]) == 0
    found = read_accepted("--baseline", base)
    assert found is not None and found.artefact["sha256"] == "b" * 64


def test_every_file_says_what_people_and_machines_read(tmp_path: Path) -> None:
    unsure = Check("health", "INCONCLUSIVE", 'is "it"?')
    judged = evaluate(example(sha="b"), example())
    write_outputs(replace(judged, checks=(*judged.checks, unsure)), tmp_path)
    lines = (tmp_path / "gate.md").read_text().splitlines()
    assert '- is "it"?' in lines
    head = lines.index(
        "| metric | against | before | after | drop | at most | worse | better | p |"
    )
    assert lines[head - 1 : head + 2 : 2] == ["", "|---|---|--:|--:|--:|--:|--:|--:|--:|"]
    assert len(lines) == head + 2 + len(judged.rows)
    junit = (tmp_path / "junit.xml").read_bytes()
    assert junit.startswith(b"<?xml version='1.0' encoding='utf-8'?>\n<testsuites ")
    cases = list(ElementTree.fromstring(junit).iter("testcase"))
    assert {case.get("classname") for case in cases} == {"gate"}
    assert cases[-1][0].get("message") == 'is "it"?'
    assert (tmp_path / "metrics.txt").read_text().endswith("# EOF\n")
    bare = to_markdown(evaluate(example(), terms=Terms(("floor",), floor=0.5)))
    assert "|" not in bare
