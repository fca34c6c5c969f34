"""One small run from images to bundle, and what can be relied on about it."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from scipy.stats import binomtest
from tiny_run import STAGES, TINY, Result, Tiny, advprune, refusal

from advprune.masks import load_masks
from deploy import suites
from deploy.bundle.check import check_bundle
from deploy.statistics import share
from deploy.verdicts import read, write

pytest_plugins = ["tiny_fixtures"]
pytestmark = pytest.mark.usefixtures("clean_environment")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def ran(before: set[str], after: set[str]) -> list[str]:
    """The stages of which there is a new artefact, in order."""
    return sorted({name.split("-")[0] for name in after - before}, key=STAGES.index)


# The folder of a run ----------------------------------------------------------------------------


def test_a_run_ends_with_its_verdict_and_links_all_stages_in_order(tiny: Tiny) -> None:
    status = tiny.report["verdict"]["status"]
    assert tiny.result.code == {"PASS": 0, "FAIL": 10, "INCONCLUSIVE": 11}[status]
    assert tiny.result.err == ""
    assert status in tiny.result.out
    assert f"{tiny.run.name}/report.html" in tiny.result.out
    links = sorted(path for path in tiny.run.iterdir() if path.resolve().is_dir())
    assert [path.name for path in links] == [f"{i:02d}_{name}" for i, name in enumerate(STAGES)]
    assert all(path.is_symlink() and not path.readlink().is_absolute() for path in links)
    assert (tiny.run / "report.html").read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in tiny.runs.iterdir()) == [
        *sorted([tiny.run.name, "latest", "store"])
    ]


def test_manifests_tell_the_truth(tiny: Tiny) -> None:
    for stage in STAGES:
        folder, manifest = tiny.artefact(stage), tiny.manifest(stage)
        real = {
            path.relative_to(folder).as_posix(): sha256(path)
            for path in folder.rglob("*")
            if path.is_file() and path != folder / "manifest.json"
        }
        assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == real
        assert folder.name == f"{stage}-{manifest['key'][:20]}"
        for parent, digest in manifest["parents"].items():
            files = tiny.manifest(parent)["files"]
            contents = {name: entry["sha256"] for name, entry in files.items()}
            text = json.dumps(contents, sort_keys=True, separators=(",", ":"))
            assert digest == hashlib.sha256(text.encode()).hexdigest()


def test_the_same_again_does_no_work_and_says_so(tiny: Tiny) -> None:
    before = {path: path.stat().st_mtime_ns for path in (tiny.runs / "store").rglob("*")}
    again = tiny.again()
    assert {path: path.stat().st_mtime_ns for path in (tiny.runs / "store").rglob("*")} == before
    assert again.code == tiny.result.code
    assert "nothing to do" in again.out
    assert "nothing to do" not in tiny.result.out
    assert [line.split()[1] for line in again.out.splitlines() if " cached " in line] == list(
        STAGES
    )
    assert (tiny.runs / "latest").resolve() == tiny.run


def test_a_profile_tells_what_ran_from_what_was_there(tiny: Tiny) -> None:
    document = tiny.again("--json").json
    profiled = tiny.again("--profile", "--json")
    assert profiled.json == document
    assert profiled.err.count("cached: nothing to time") == len(STAGES)
    assert f"{tiny.run.name}/profile/profile.md" in profiled.err

    late = tiny.again("--profile", "--set", "gate.margin=0.03")
    table = json.loads((tiny.runs / "latest" / "profile" / "profile.json").read_text())
    ran = [stage["name"] for stage in table["stages"] if not stage["cached"]]
    assert ran == ["gate", "report", "bundle"]
    assert "profile.md" in late.out


def test_the_recipe_of_a_run_makes_the_same_run(tiny: Tiny) -> None:
    before, record = tiny.store, tiny.run / "recipe.toml"
    text = record.read_text()
    again = advprune("run", "--runs", tiny.runs, "--recipe", record)
    assert "nothing to do" in again.out
    assert tiny.store == before
    # Where the values first came from is not forgotten.
    assert "epochs = 1  # --set" in text
    assert record.read_text() == text


def test_a_plan_knows_what_is_there(tiny: Tiny) -> None:
    before = tiny.store
    entries = advprune("plan", "--runs", tiny.runs, *TINY, "--json").json
    assert [entry["cached"] for entry in entries] == [True] * len(STAGES)
    shown = advprune("plan", "--runs", tiny.runs, *TINY, "--set", "finetune.epochs=2").out
    rows = {line.split()[0]: line for line in shown.splitlines()[1:]}
    assert all("cached" in rows[name] for name in STAGES[:4])
    assert not any("cached" in rows[name] for name in STAGES[4:])
    assert "about" in rows["finetune"]
    assert tiny.store == before


# The numbers ------------------------------------------------------------------------------------


def test_every_number_of_the_report_is_that_of_the_verdicts(tiny: Tiny) -> None:
    report = tiny.report
    assert [engine["name"] for engine in report["engines"]] == ["fp32", "int8"]
    for engine in report["engines"]:
        verdicts = read(tiny.verdicts(engine["name"]))
        file = tiny.artefact("export") / engine["file"]
        assert verdicts.artefact["sha256"] == sha256(file)
        assert engine["bytes"] == file.stat().st_size
        shown = {"clean": engine["clean"], "worst": engine["worst"], **engine["attacks"]}
        flags = np.array(list(verdicts.correct.values()))
        assert set(shown) == {*verdicts.correct, "worst"}
        assert shown["worst"]["value"] == flags.all(axis=0).mean()
        for name, row in verdicts.correct.items():
            assert shown[name]["value"] == np.mean(row)
        for name, row in shown.items():
            count = round(row["value"] * verdicts.count)
            interval = binomtest(count, verdicts.count).proportion_ci(method="exact")
            assert (row["low"], row["high"]) == pytest.approx(interval, abs=1e-9), name
        assert report["images"] == verdicts.count == 120
    metrics = tiny.manifest("verify")["metrics"]
    assert metrics["int8_worst"] == report["engines"][1]["worst"]["value"]
    gate = json.loads((tiny.artefact("gate") / "gate.json").read_text())
    assert report["verdict"] == {"status": gate["status"], "lines": gate["lines"]}


def kernels(path: Path) -> dict[str, np.ndarray]:
    """The weights of convolutions and linear layers of an ONNX file, by shape-independent order."""
    graph = onnx.load(path).graph
    values = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    behind = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    # Input of the node that holds the weights, by operator.
    place = {"Conv": 1, "Gemm": 1, "MatMul": 1, "QLinearConv": 3, "QGemm": 3}
    found = {}
    for node in graph.node:
        if node.op_type in place:
            name = node.input[place[node.op_type]]
            found[node.name] = values[behind.get(name, name)]
    return found


def test_sparsity_is_exact_in_every_exported_file(tiny: Tiny) -> None:
    masks = load_masks(tiny.artefact("prune") / "masks.safetensors")
    kept = [int(mask.sum()) for mask in masks.values()]
    total = sum(mask.numel() for mask in masks.values())
    assert sum(kept) == round(0.1 * total)
    assert tiny.report["sparsity"]["kept"] == sum(kept)
    assert tiny.report["sparsity"]["total"] == total
    assert tiny.report["sparsity"]["got"] == pytest.approx(1 - sum(kept) / total)

    folder = tiny.artefact("export")
    floats = [np.count_nonzero(k) for k in kernels(folder / "model.onnx").values()]
    # A weight that was kept may be zero, but hardly any; one that was removed must be.
    assert len(floats) == len(kept)
    assert sum(floats) <= sum(kept)
    assert sum(floats) == tiny.manifest("quantize")["metrics"]["fp32_nonzero"]
    assert sorted(floats) == sorted(kept)

    eight = {name: k.astype(int) for name, k in kernels(folder / "model.int8.onnx").items()}
    nonzero = {name: np.count_nonzero(k) for name, k in eight.items()}
    assert sum(nonzero.values()) == tiny.manifest("quantize")["metrics"]["int8_nonzero"]
    # Rounding to 8 bits may take the smallest kept weights too, and brings none back.
    assert all(n <= keep for n, keep in zip(sorted(nonzero.values()), sorted(kept), strict=True))


def test_the_engines_share_one_set_of_removed_weights(tiny: Tiny) -> None:
    folder = tiny.artefact("export")
    floats = kernels(folder / "model.onnx")
    eight = kernels(folder / "model.int8.onnx")
    assert len(floats) == len(eight)
    for a, b in zip(floats.values(), eight.values(), strict=True):
        same = b if a.shape == b.shape else b.T
        assert not same[a == 0].any()


# Commands on a run ------------------------------------------------------------------------------


def test_report_prints_the_report(tiny: Tiny) -> None:
    assert advprune("report", tiny.run, "--json").json == tiny.report
    shown = advprune("report", tiny.run)
    assert shown.code == 0
    assert shown.out.endswith(f"{tiny.run}/report.html\n")
    assert tiny.again("--json").json == {**tiny.report, "run": tiny.run.name}


def test_verify_reproduces_every_verdict(tiny: Tiny) -> None:
    result = advprune("verify", tiny.run, "--json")
    assert result.code == 0
    assert result.json["changed"] == 0
    for engine in ("fp32", "int8"):
        rows = {r["attack"]: r["accuracy"] for r in result.json["rows"] if r["engine"] == engine}
        assert rows == read(tiny.verdicts(engine)).accuracy()


def test_a_file_that_was_changed_is_refused_by_name(tiny: Tiny, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny.runs, tmp_path / "runs", symlinks=True)
    run = copy / tiny.run.name
    engine = run / "06_export" / "model.int8.x86.onnx"
    engine.write_bytes(engine.read_bytes()[:-1] + b"\0")
    again = advprune("run", "--runs", copy, *TINY)
    for result in (advprune("verify", run), advprune("bench", run), again):
        assert "model.int8.x86.onnx: missing or changed" in refusal(result, 65)
    # A report is not printed either, once it was changed.
    (run / "report.json").write_text("{}")
    assert "report.json: missing or changed" in refusal(advprune("report", run), 65)


def test_verify_tells_verdicts_that_cannot_be_reproduced(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.commands import verify

    verdicts = {engine: dict(read(tiny.verdicts(engine)).flags) for engine in ("fp32", "int8")}
    verdicts["int8"]["clean"] = [not flag for flag in verdicts["int8"]["clean"]]

    class Changed:
        def __init__(self, *unused: Any) -> None:
            self.verdicts = verdicts
            self.curve, self.health, self.invalid = None, [], []

    monkeypatch.setattr(verify, "attack", Changed)
    shown = advprune("verify", tiny.run)
    assert shown.code == 11
    assert f"{len(verdicts['int8']['clean'])} verdicts differ from the report's" in shown.out


def test_verify_ends_with_11_where_the_evaluation_is_invalid(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy.health import Check
    from pipeline.commands import verify

    check = Check("H5", "int8-twin: share of images with a zero input gradient", 1.0, "INVALID")

    class Masked:
        def __init__(self, *unused: Any) -> None:
            self.verdicts = {e: dict(read(tiny.verdicts(e)).flags) for e in ("fp32", "int8")}
            self.curve, self.health, self.invalid = None, [check], [check]

    monkeypatch.setattr(verify, "attack", Masked)
    shown = advprune("verify", tiny.run)
    assert shown.code == 11
    assert "INVALID H5 int8-twin: share of images with a zero input gradient" in shown.out
    assert "0 verdicts differ" in shown.out


def test_a_suite_is_written_beside_the_run(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slight = replace(suites.suite("quick"), images=60, steps=5, queries=5, fmn=2, health=10)
    monkeypatch.setitem(suites._SUITES, "quick", slight)
    copy = shutil.copytree(tiny.runs, tmp_path / "runs", symlinks=True)
    run = copy / tiny.run.name
    result = advprune("verify", run, "--suite", "quick", "--json")
    assert result.code in (0, 11)
    folder = run / "verify-quick"
    for engine in ("fp32", "int8"):
        verdicts = read(folder / f"verdicts.{engine}.json")
        assert verdicts.count == 60
        recorded = read(run / "07_verify" / f"verdicts.{engine}.json")
        assert verdicts.artefact == recorded.artefact
        assert verdicts.protocol["images"] != recorded.protocol["images"]
    found = json.loads((folder / "verification.json").read_text())
    assert len(found["indices"]) == 60
    assert found["health"] == result.json["health"]
    assert {"curve", "transfer", "parity"} <= found.keys()
    assert "'slow' is not known" in refusal(advprune("verify", run, "--suite", "slow"), 2)


def test_bench_measures_every_engine_beside_its_accuracy(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "raw.json"
    measured = advprune("bench", tiny.run, "--json", "--out", out, "--single-stream", "0")
    assert measured.code == 0
    assert json.loads(out.read_text()) == measured.json
    assert list(measured.json) == ["fp32", "int8"]
    files = tiny.manifest("export")["files"]
    for engine, found in measured.json.items():
        assert 0 < found["p50_ms"] <= found["p90_ms"] <= found["p99_ms"]
        assert len(found["samples_ms"]) >= 300
        assert found["load_ms"] > 0 and found["first_ms"] > 0
        assert found["peak_memory"] > found["bytes"] == files[found["file"]]["bytes"]
        assert found["bytes"] > found["compressed_bytes"]
        assert (found["runtime"], found["providers"]) == ("onnxruntime", ["CPUExecutionProvider"])
        flags = read(tiny.verdicts(engine)).flags
        assert found["worst"]["value"] == sum(flags["worst"]) / len(flags["worst"])
        assert found["worst"]["low"] < found["worst"]["value"] < found["worst"]["high"]
        assert found["clean"] == share(flags["clean"])
        assert found["single_stream"]["queries"] == 64
    assert measured.json["fp32"]["operators"]["Conv"] == 9
    assert measured.json["int8"]["operators"]["QLinearConv"] == 9
    assert "Conv" not in measured.json["int8"]["operators"]


def test_bench_in_another_runtime_claims_no_accuracy_measured_in_this_one(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = advprune("bench", tiny.run, "--runtime", "openvino", "--threads", "1")
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == ["fp32", "int8"]
    cells = {line[:17].strip(): line[17:].split() for line in lines[1:-2]}
    # OpenVINO has a form of its own, and really computes with 8 bits.
    assert cells["file"] == ["model.onnx", "model.int8.openvino.onnx"]
    assert cells["clean"] == cells["worst case [95 %]"[:17]] == ["–", "–"]
    kernels = " ".join(cells["kernels"])
    assert re.search(r"9 Convolution [iu]8, 1 FullyConnected i8$", kernels), kernels
    assert cells["threads"] == ["1", "1"]
    assert "single stream" not in shown.out


def test_bench_refuses_what_it_cannot_run(tiny: Tiny) -> None:
    assert "use ort, ort-cuda" in refusal(advprune("bench", tiny.run, "--runtime", "tflite"), 2)
    cuda = refusal(advprune("bench", tiny.run, "--runtime", "ort-cuda"), 69)
    assert "asked for CUDAExecutionProvider, CPUExecutionProvider would run" in cuda
    assert "no model.plan" in refusal(advprune("bench", tiny.run, "--runtime", "tensorrt"), 66)
    assert "--threads" in refusal(advprune("bench", tiny.run, "--threads", "0"), 2)
    endless = refusal(advprune("bench", tiny.run, "--single-stream", "inf"), 2)
    assert "seconds that ends" in endless


def test_a_bundle_can_be_trusted(tiny: Tiny) -> None:
    manifest = check_bundle(tiny.artefact("bundle") / "bundle")
    assert set(manifest["models"]) == {"fp32", "int8", "int8-tensorrt"}
    assert manifest["metadata"]["sparsity"] == tiny.report["sparsity"]["got"]


# The gate ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def baseline(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("baseline") / "base.json"
    words = ["--baseline", path, "--update-baseline", "--reason", "the first one", "--json"]
    made = advprune("gate", tiny.run, *words)
    assert made.code == 0
    assert made.json["baseline"] == str(path)
    assert "none → " in made.json["changed"]
    return path


def test_a_run_passes_against_itself(tiny: Tiny, baseline: Path, tmp_path: Path) -> None:
    assert read(baseline).reason == "the first one"
    assert read(baseline).correct == read(tiny.verdicts("int8")).correct
    junit, markdown = tmp_path / "junit.xml", tmp_path / "gate.md"
    words = ["--baseline", baseline, "--junit", junit, "--markdown", markdown]
    shown = advprune("gate", tiny.run, *words)
    assert shown.code == 0
    assert shown.out.startswith("gate PASS\n")
    assert ElementTree.parse(junit).getroot().get("failures") == "0"
    assert markdown.read_text().startswith("<!-- advprune-gate -->\n### Gate: PASS")
    as_json = advprune("gate", tiny.run, "--baseline", baseline, "--json")
    assert as_json.code == 0
    assert as_json.json["status"] == "PASS"
    assert as_json.json["primary"]["against"] == "baseline"


def test_without_a_baseline_the_float_engine_decides(tiny: Tiny) -> None:
    result = advprune("gate", tiny.run, "--json")
    assert result.code == tiny.result.code
    assert result.json["primary"]["against"] == "fp32"


@pytest.fixture
def better(baseline: Path, tmp_path: Path) -> Path:
    """A forged baseline: an engine that was never wrong."""
    perfect = read(baseline)
    correct = {name: [True] * perfect.count for name in perfect.correct}
    write(tmp_path / "better.json", replace(perfect, correct=correct))
    return tmp_path / "better.json"


def test_a_run_that_is_worse_fails(tiny: Tiny, better: Path) -> None:
    result = advprune("gate", tiny.run, "--baseline", better, "--json")
    assert result.code == 10
    assert result.json["status"] == "FAIL"
    # A margin as wide as everything lets it pass: too few were right for that drop to fail.
    assert advprune("gate", tiny.run, "--baseline", better, "--margin", "0.99").code != 10


def test_a_run_held_against_a_better_baseline_ships_nothing(tiny: Tiny, better: Path) -> None:
    before = tiny.store
    failed = tiny.again("--baseline", better)
    assert failed.code == 10
    assert ran(before, tiny.store) == ["gate", "report", "bundle"]
    run = (tiny.runs / "latest").resolve()
    assert run != tiny.run
    assert (run / "10_bundle" / "skipped.json").is_file()
    assert not (run / "10_bundle" / "bundle").exists()
    # The same again: nothing to do, and still a failure.
    again = tiny.again("--baseline", better)
    assert "nothing to do" in again.out
    assert again.code == 10


def test_a_baseline_that_cannot_be_compared_is_refused(
    tiny: Tiny, baseline: Path, tmp_path: Path
) -> None:
    one = read(baseline)
    protocol = {**one.protocol, "threat": {**one.protocol["threat"], "eps": 0.3}}
    other = tmp_path / "other.json"
    write(other, replace(one, protocol=protocol))
    message = refusal(advprune("gate", tiny.run, "--baseline", other), 12)
    assert "threat.eps (0.3 there, 0.15 here)" in message
    before = tiny.store
    assert "threat.eps" in refusal(tiny.again("--baseline", other), 12)
    assert tiny.store == before  # the refused stage left nothing

    none = tmp_path / "none.json"
    assert "no such file" in refusal(advprune("gate", tiny.run, "--baseline", none), 12)
    (tmp_path / "text.json").write_text("{}")
    refusal(advprune("gate", tiny.run, "--baseline", tmp_path / "text.json"), 65)


def test_a_baseline_is_not_replaced_lightly(
    tiny: Tiny, baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new.json"
    update = ["gate", tiny.run, "--update-baseline"]
    assert "--baseline FILE" in refusal(advprune(*update, "--reason", "x"), 2)
    assert "reason" in refusal(advprune(*update, "--baseline", new), 2)
    message = refusal(advprune("gate", tiny.run, "--baseline", baseline, "--reason", "x"), 2)
    assert "--update-baseline" in message
    assert "margin" in refusal(advprune("gate", tiny.run, "--margin", "1"), 2)
    monkeypatch.setenv("CI", "true")
    refused = advprune(*update, "--baseline", new, "--reason", "x")
    assert "CI is set" in refusal(refused, 2)
    assert not new.exists()


# What a change costs ----------------------------------------------------------------------------


def test_a_late_change_makes_only_what_follows_again(tiny: Tiny) -> None:
    before = tiny.store
    assert tiny.again("--set", "gate.margin=0.02").code in (0, 10, 11)
    middle = tiny.store
    assert ran(before, middle) == ["gate", "report", "bundle"]
    tiny.again("--set", "verify.queries=6")
    assert ran(middle, tiny.store) == ["verify", "gate", "report", "bundle"]
    newest = (tiny.runs / "latest").resolve()
    assert json.loads((newest / "report.json").read_text())["recipe"]["verify"]["queries"] == 6
    # The first run is untouched by those beside it.
    assert tiny.report["recipe"]["verify"]["queries"] == 5
    tiny.again()
    assert (tiny.runs / "latest").resolve() == tiny.run


@pytest.mark.slow
def test_engines_for_cameras_and_in_halves_are_attacked_and_shipped_too(tiny: Tiny) -> None:
    before = tiny.store
    words = ["--uint8-head", "--fp16", "--set", "verify.queries=1", "--set", "verify.steps=1"]
    report = tiny.again(*words, "--json").json
    assert ran(before, tiny.store) == ["export", "verify", "gate", "report", "bundle"]
    engines = {engine["name"]: engine for engine in report["engines"]}
    assert set(engines) == {"fp32", "fp16", "int8", "int8-camera"}
    assert engines["fp16"]["bytes"] < 0.6 * engines["fp32"]["bytes"]
    # Three digits are enough for the same verdicts, but for images on the boundary.
    assert engines["fp16"]["worst"]["value"] == pytest.approx(
        engines["fp32"]["worst"]["value"], abs=0.03
    )
    folder = (tiny.runs / "latest" / "10_bundle" / "bundle").resolve()
    assert {"int8-camera", "fp16"} < set(check_bundle(folder)["models"])


def test_a_folder_where_latest_should_be_is_told(tiny: Tiny, tmp_path: Path) -> None:
    copy = tmp_path / "runs"
    copy.mkdir()
    (copy / "store").symlink_to(tiny.runs / "store")
    (copy / "latest").mkdir()
    assert "latest: is a folder" in refusal(advprune("run", "--runs", copy, *TINY), 73)


# Processes --------------------------------------------------------------------------------------


def test_a_second_process_is_refused_and_an_interrupted_one_goes_on(
    tiny: Tiny, tmp_path: Path
) -> None:
    """Two processes want one run; Ctrl-C ends the first with one line, and its work is kept."""
    runs = tmp_path / "runs"
    (runs / "store").mkdir(parents=True)
    data = tiny.artefact("data")
    shutil.copytree(data, runs / "store" / data.name)
    words = ["run", "--runs", str(runs), *TINY, "--set", "standard.epochs=100000"]
    # A shell that starts the tests in the background makes their children ignore Ctrl-C.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from pipeline.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as first:
        try:
            wait_for(lambda: list(runs.glob("store/.tmp-standard-*/.checkpoint-*")), first)
            message = refusal(advprune(*words), 75)
            assert f"in use by process {first.pid} on " in message
            first.send_signal(signal.SIGINT)
            out, err = first.communicate(timeout=60)
        finally:
            first.kill()
    interrupted = Result(first.returncode, out.decode(), err.decode())
    assert "goes on where this one stopped" in refusal(interrupted, 130)
    left = [path.name for path in (runs / "store").iterdir() if path.name.startswith(".")]
    assert len(left) == 1
    assert left[0].startswith(".tmp-standard-")
    assert not list(runs.glob(".*.lock"))


def wait_for(ready: Callable[[], Any], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_progress_does_not_mix_with_json(tiny: Tiny) -> None:
    result = tiny.again("--json")
    assert result.out.count("\n") == 1
    assert " ✓ data" in result.err
