"""`advprune gate`: a run or a device's file, by every policy, beside the engine it replaces."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import TINY, Tiny, advprune, refusal

from deploy.files import sha256
from deploy.verdicts import Verdicts, read, write
from pipeline.stages.export import X86

pytest_plugins = ["tiny_fixtures"]


@pytest.fixture
def baseline(tiny: Tiny, tmp_path: Path) -> Path:
    write(tmp_path / "base.json", read(tiny.verdicts("int8")))
    return tmp_path / "base.json"


def changed(baseline: Path, path: Path, **changes: object) -> Path:
    """A baseline that says something else."""
    found = replace(read(baseline), **changes)  # pyright: ignore[reportArgumentType]
    write(path, found)
    return path


def worse(verdicts: Verdicts) -> dict[str, list[bool]]:
    return {name: [False] * verdicts.count for name in verdicts.correct}


def test_verdicts_say_what_their_engine_costs(tiny: Tiny) -> None:
    report = {engine["name"]: engine for engine in tiny.report["engines"]}
    float_p50 = report["fp32"]["latency"]["p50_ms"]
    for name, engine in report.items():
        measured = read(tiny.verdicts(name)).measured
        assert measured is not None
        assert measured["bytes"] == engine["bytes"]
        assert measured["compressed_bytes"] == engine["compressed_bytes"]
        assert measured["p50_ms"] == engine["latency"]["p50_ms"]
        assert measured["p99_ms"] == engine["latency"]["p99_ms"]
        assert measured["float_p50_ms"] == float_p50
        assert measured["where"].startswith("onnxruntime ")
        assert measured["where"].endswith(" cpu, 1 thread")


def test_a_file_is_judged_as_the_run_is(tiny: Tiny, baseline: Path, tmp_path: Path) -> None:
    file = tiny.verdicts("int8")
    words = ["--baseline", baseline, "--policy", "regress", "--policy", "floor", "--floor", "0.01"]
    alone = advprune("gate", file, *words, "--json")
    whole = advprune("gate", tiny.run, *words, "--json")
    assert (alone.code, alone.json["status"]) == (0, "PASS")
    assert whole.json["primary"] == alone.json["primary"]
    assert whole.json["checks"] == alone.json["checks"]
    assert "evaluation health" in {check["name"] for check in alone.json["checks"]}
    # A run also has its float engine.
    assert len(whole.json["rows"]) == 2 * len(alone.json["rows"])
    wanted = advprune("gate", file, *words, "--ratio", "0.01", "--float", tiny.verdicts("fp32"))
    assert wanted.code == 0
    assert "of fp32, point values" in wanted.out
    update = ["--baseline", tmp_path / "new.json", "--update-baseline", "--reason", "device"]
    assert advprune("gate", file, *update).code == 0
    assert read(tmp_path / "new.json").correct == read(file).correct


def test_what_a_file_lacks_is_refused(tiny: Tiny, baseline: Path) -> None:
    file = tiny.verdicts("int8")
    assert "add --baseline" in refusal(advprune("gate", file), 2)
    words = ["--baseline", baseline]
    assert "--float FILE" in refusal(advprune("gate", file, *words, "--ratio", "0.9"), 2)
    assert "give a run" in refusal(advprune("gate", file, *words, "--previous", file), 2)
    assert "a run has" in refusal(advprune("gate", tiny.run, "--float", file), 2)
    assert "add --baseline" in refusal(advprune("gate", tiny.run, "--previous", file), 2)
    assert "did you mean ship?" in refusal(advprune("gate", tiny.run, "--policy", "shp"), 2)
    assert "did you mean 0.7?" in refusal(advprune("gate", tiny.run, "--floor", "70"), 2)


def test_a_run_is_held_against_the_release_as_well(
    tiny: Tiny, baseline: Path, tmp_path: Path
) -> None:
    verdicts = read(baseline)
    perfect = {name: [True] * verdicts.count for name in verdicts.correct}
    release = changed(baseline, tmp_path / "release.json", correct=perfect)
    found = advprune("gate", tiny.run, "--baseline", baseline, "--release", release, "--json")
    assert found.code == 10
    statuses = {check["name"]: check["status"] for check in found.json["checks"]}
    assert statuses["worst against baseline"] == "PASS"
    assert statuses["worst against release"] == "FAIL"
    assert "--release" in refusal(advprune("gate", tiny.run, "--release", tmp_path / "no"), 12)


def test_all_outputs_land_in_a_folder(tiny: Tiny, baseline: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    shown = advprune("gate", tiny.run, "--baseline", baseline, "--out", tmp_path / "out", "--json")
    files = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert set(files) == {"gate.json", "gate.md", "junit.xml", "metrics.txt"}
    assert json.loads(files["gate.json"]) == shown.json
    assert files["metrics.txt"].endswith("# EOF\n")


def test_github_is_told_beside_the_document(
    tiny: Tiny, baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output"))
    verdicts = read(baseline)
    bad = changed(baseline, tmp_path / "bad.json", correct=worse(verdicts))
    failed = advprune("gate", bad, "--baseline", baseline, "--json")
    assert (failed.code, failed.json["status"]) == (10, "FAIL")
    assert failed.err.startswith("::error title=gate::worst against baseline")
    assert (tmp_path / "output").read_text().startswith("status=FAIL\n")
    refused = advprune("gate", bad, "--baseline", tmp_path / "absent.json")
    assert refused.code == 12
    assert refused.err.startswith("::error title=gate::--baseline")


def test_the_engine_before_is_timed_in_turn(tiny: Tiny, baseline: Path) -> None:
    old = tiny.artefact("export") / X86
    assert read(baseline).artefact["sha256"] == sha256(old)
    words = ["--baseline", baseline, "--hard", "latency", "--json"]
    found = advprune("gate", tiny.run, *words, "--previous", old).json
    (latency,) = [c for c in found["checks"] if c["name"] == "latency against baseline"]
    assert "over 5 rounds, timed in turn" in latency["message"]
    assert latency["status"] in ("PASS", "FAIL")
    other = tiny.artefact("export") / "model.onnx"
    message = refusal(advprune("gate", tiny.run, "--baseline", baseline, "--previous", other), 12)
    assert "give that file" in message


def test_a_worse_baseline_must_be_accepted(tiny: Tiny, tmp_path: Path) -> None:
    verdicts = read(tiny.verdicts("int8"))
    perfect = {name: [True] * verdicts.count for name in verdicts.correct}
    path = changed(tiny.verdicts("int8"), tmp_path / "base.json", correct=perfect)
    update = ["gate", tiny.run, "--baseline", path, "--update-baseline", "--reason", "smaller"]
    assert "--accept-regression" in refusal(advprune(*update), 10)
    accepted = advprune(*update, "--accept-regression")
    assert accepted.code == 0
    assert "worst: 100.0 % → " in accepted.out
    assert advprune(*update).out == f"{path}: unchanged\n"
    lone = advprune("gate", tiny.run, "--baseline", path, "--accept-regression")
    assert "--update-baseline" in refusal(lone, 2)


def test_a_recipe_names_policies_and_a_release(tiny: Tiny, baseline: Path) -> None:
    words = ["--set", "gate.policy=floor", "--set", "gate.floor=0.99"]
    failed = tiny.again(*words, "--set", f"gate.release={baseline}", "--json")
    assert failed.code == 10
    assert dict(failed.json["gate"]["policies"]) == {"floor": 0.99}
    assert {row["against"] for row in failed.json["gate"]["rows"]} == {"release", "fp32"}
    tiny.again()  # where others expect `latest`


def test_a_finished_run_knows_how_many_images_it_judges_by(tiny: Tiny) -> None:
    entries = advprune("plan", "--runs", tiny.runs, *TINY, "--json").json
    (gate,) = [entry for entry in entries if entry["name"] == "gate"]
    assert gate["cached"]
    assert gate["outlook"]["images"] == read(tiny.verdicts("int8")).count
