"""A tracker has every epoch once and the verdict, changes nothing, and stops no run."""

import errno
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from stage_runs import SMALL, Runner, with_settings
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import Tiny, advprune, refusal

from advprune.errors import Refused, Unavailable
from advprune.method import Progress
from pipeline.lines import METRICS, from_lines
from pipeline.tracking import PACKAGES, Tracking, to_mlflow, to_tensorboard
from pipeline.watch import Watch

pytest_plugins = ["tiny_fixtures"]
BOTH = ("--track", "tensorboard,mlflow")
TRAINED = ("standard", "adversarial", "prune", "finetune")
Scalars = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def copy(tiny: Tiny, tmp_path: Path) -> Tiny:
    """The finished run, for one test alone."""
    runs = shutil.copytree(tiny.runs, tmp_path / "runs", symlinks=True)
    return Tiny(runs, tiny.result, runs / tiny.run.name)  # others make runs there, too


def events(folder: Path) -> EventAccumulator:
    """As TensorBoard reads them."""
    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def in_tensorboard(runs: Path, run: str) -> Scalars:
    read = events(runs / "tensorboard" / run)
    return {
        tag: sorted((event.step, event.value) for event in read.Scalars(tag))
        for tag in read.Tags()["scalars"]
    }


def mlflow_run(runs: Path, run: str) -> tuple[MlflowClient, Run]:
    """The only one there, found as anybody would who does not know its name."""
    client = MlflowClient((runs / "mlflow").resolve().as_uri())
    experiment = client.get_experiment_by_name("advprune")
    assert experiment
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == run
    return client, found


def in_mlflow(runs: Path, run: str) -> Scalars:
    client, found = mlflow_run(runs, run)
    return {
        name: sorted((m.step, m.value) for m in client.get_metric_history(found.info.run_id, name))
        for name in found.data.metrics
    }


READERS: list[Callable[[Path, str], Scalars]] = [in_tensorboard, in_mlflow]


def of_training(scalars: Scalars) -> Scalars:
    """What does not depend on the hour."""
    clocks = ("seconds", "images_per_second")
    return {k: v for k, v in scalars.items() if k.split("/")[1] not in clocks}


def expected(rows: list[dict[str, Any]], stage: str) -> Scalars:
    found: Scalars = {}
    for row in rows:
        for key, value in row.items():
            if key != "epoch":
                found.setdefault(f"{stage}/{key}", []).append((row["epoch"], float(value)))
    return found


def same(got: Scalars, wanted: Scalars) -> bool:
    """TensorBoard keeps float32."""
    return got.keys() == wanted.keys() and all(
        [step for step, _ in got[k]] == [step for step, _ in wanted[k]]
        and [value for _, value in got[k]] == pytest.approx([v for _, v in wanted[k]], rel=1e-6)
        for k in wanted
    )


# A finished run ---------------------------------------------------------------------------------


def test_both_have_every_stage_the_recipe_and_the_verdict_and_results_are_as_before(
    copy: Tiny,
) -> None:
    before = {stage: copy.manifest(stage) for stage in (*TRAINED, "verify", "report")}
    result = copy.again(*BOTH)
    assert result.code == copy.result.code
    assert "warning" not in result.out
    assert "nothing to do" in result.out
    assert {stage: copy.manifest(stage) for stage in before} == before
    run, wanted = copy.run.name, dict[str, list[tuple[int, float]]]()
    for stage in TRAINED:
        wanted |= expected(from_lines((copy.artefact(stage) / METRICS).read_bytes()), stage)
    for key, value in before["verify"]["metrics"].items():
        wanted[f"verdict/{key}"] = [(0, value)]
    for read in READERS:
        assert same(read(copy.runs, run), wanted), read
    assert wanted["finetune/sparsity"][-1][1] == pytest.approx(0.9)

    client, found = mlflow_run(copy.runs, run)
    parameters = found.data.params
    assert parameters["method"] == "harp"
    assert parameters["adversarial.epochs"] == "2"
    assert found.data.tags["verdict"] == copy.manifest("gate")["metrics"]["verdict"]
    assert found.info.status == "FINISHED"
    assert [item.path for item in client.list_artifacts(found.info.run_id)] == ["report.html"]
    page = Path(client.download_artifacts(found.info.run_id, "report.html"))
    assert page.read_bytes() == (copy.run / "report.html").read_bytes()
    texts = events(copy.runs / "tensorboard" / run)
    (recipe,) = texts.Tensors("recipe/text_summary")
    text = recipe.tensor_proto.string_val[0].decode()
    assert {f"    {key} = {value}" for key, value in parameters.items()} == set(text.splitlines())
    (verdict,) = texts.Tensors("verdict/text_summary")
    assert verdict.tensor_proto.string_val[0].decode() == found.data.tags["verdict"]

    assert copy.again(*BOTH).code == result.code
    for read in READERS:
        assert same(read(copy.runs, run), wanted), "once is enough"


def test_with_json_standard_output_is_the_document_alone(copy: Tiny) -> None:
    result = copy.again(*BOTH, "--json")
    assert result.json == {**copy.report, "run": copy.run.name}


# Training that is interrupted -------------------------------------------------------------------

RECIPE = with_settings({"model": "dying:net", "standard.epochs": 4}, SMALL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    runner = Runner(RECIPE, tmp_path_factory.mktemp("whole"))
    for stage in ("data", "standard"):
        runner.build(stage)
    return runner


def tracked(runs: Path, whole: Runner, watch: Callable[..., Watch], told: list[str]) -> None:
    """One process's part of the training of a stage."""
    runner = Runner(RECIPE, runs)
    runner.made = {"data": whole.made["data"]}
    tracking = Tracking(["tensorboard", "mlflow"], told.append)

    def tell(history: list[dict]) -> None:
        tracking.tell("standard", history, {"seconds": 1.0, "images_per_second": 2.0})
        if history:
            assert mlflow_run(runs, "tracked")[1].info.status == "RUNNING"

    with tracking.run(runs, "tracked", RECIPE):
        runner.build("standard", lambda *given: watch(*given, told=tell))
        assert runner.made["standard"].digest == whole.made["standard"].digest


@pytest.mark.parametrize("seed", range(2))
def test_a_run_that_goes_on_goes_on_in_the_same_record(
    seed: int, whole: Runner, tmp_path: Path
) -> None:
    draw, told, steps_left = random.Random(seed), [], 0

    class Interrupted(Watch):
        def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
            nonlocal steps_left
            super().step(progress, metrics)
            steps_left -= 1
            if not steps_left:
                raise KeyboardInterrupt

    for steps in (draw.randint(15, 24), draw.randint(2, 16)):
        steps_left = steps
        with pytest.raises(KeyboardInterrupt):
            tracked(tmp_path, whole, Interrupted, told)
        assert mlflow_run(tmp_path, "tracked")[1].info.status == "KILLED"
    # Of the last process the end of its last record was lost.
    *_, last = sorted((tmp_path / "tensorboard" / "tracked").iterdir())
    os.truncate(last, last.stat().st_size - 5)
    tracked(tmp_path, whole, Watch, told)
    assert told == []
    rows = from_lines((whole.made["standard"].path / METRICS).read_bytes())
    for read in READERS:
        found = read(tmp_path, "tracked")
        assert same(of_training(found), expected(rows, "standard"))
        assert {value for _, value in found["standard/images_per_second"]} == {2.0}
    assert mlflow_run(tmp_path, "tracked")[1].info.status == "FINISHED"


# Trackers that fail -----------------------------------------------------------------------------


@pytest.mark.parametrize("module", [to_tensorboard, to_mlflow])
def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(
    module: Any, whole: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    name = module.__name__.rpartition("_")[2]
    right = module.Record.scalars

    def full(self: Any, step: int, values: Mapping[str, float]) -> None:
        if step > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        right(self, step, values)

    with monkeypatch.context() as patch:
        patch.setattr(module.Record, "scalars", full)
        tracked(tmp_path, whole, Watch, told)
    (line,) = told
    assert line.startswith(f"warning: --track {name} failed")
    assert "No space left on device" in line
    assert "\n" not in line
    rows = from_lines((whole.made["standard"].path / METRICS).read_bytes())
    counts = {read: len(read(tmp_path, "tracked")["standard/loss"]) for read in READERS}
    assert sorted(counts.values()) == [2, 4], "the other one is not disturbed"

    tracking = Tracking([name], told.append)  # the same command again
    with tracking.run(tmp_path, "tracked", RECIPE):
        tracking.finished("standard", whole.made["standard"])
    assert len(told) == 1
    for read in READERS:
        assert same(of_training(read(tmp_path, "tracked")), expected(rows, "standard"))


def test_a_server_that_is_not_there_costs_a_line(
    copy: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # where nobody answers
    result = copy.again(*BOTH)
    assert result.code == copy.result.code
    warnings = [line for line in result.out.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1, result.out
    assert warnings[0].startswith("warning: --track mlflow failed and is left alone")
    assert result.err == ""
    assert in_tensorboard(copy.runs, copy.run.name)
    assert not (copy.runs / "mlflow").exists()


def test_a_record_elsewhere_is_another_one(copy: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    copy.again(*BOTH)
    elsewhere = copy.runs.parent / "elsewhere"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (elsewhere / "mlflow").as_uri())
    assert "warning" not in copy.again(*BOTH).out
    assert in_mlflow(elsewhere, copy.run.name) == in_mlflow(copy.runs, copy.run.name)


# Before anything is done ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word", ["nonsense", "", "tensorboard,", "TensorBoard", "tensorboard;mlflow"]
)
def test_a_tracker_that_nobody_knows_is_refused(word: str, tmp_path: Path) -> None:
    result = advprune("run", "--runs", tmp_path / "runs", "--track", word)
    assert "is not known; " in refusal(result, 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_named_with_what_to_type(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        monkeypatch.setitem(sys.modules, loaded, None)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"pipeline.tracking.to_{name}")
    result = advprune("run", "--runs", tmp_path / "runs", "--track", name)
    assert refusal(result, 69).endswith(f"type: pip install {PACKAGES[name]}")
    assert list(tmp_path.iterdir()) == []


def test_a_name_may_be_given_twice_and_in_any_way() -> None:
    Tracking(["tensorboard, mlflow", "tensorboard"], pytest.fail)
    with pytest.raises(Refused, match="did you mean tensorboard"):
        Tracking(["tensorbord"], pytest.fail)
    assert issubclass(Unavailable, Refused)


def test_what_was_not_asked_for_is_not_imported_and_what_was_reports_to_nobody() -> None:
    show = """
import sys
import pipeline.commands.running
from pipeline.tracking import Tracking
assert not {"tensorboard", "mlflow"} & sys.modules.keys()
Tracking(["mlflow"], print)
import os, threading
import mlflow.telemetry.utils
assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
assert mlflow.telemetry.utils.is_telemetry_disabled()
assert mlflow.telemetry.get_telemetry_client() is None
assert threading.active_count() == 1
"""
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "CI", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", show],
        env=outside,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
