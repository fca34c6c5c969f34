"""Promise: on another machine a cell is what it is here, and the death of its worker is told."""

import _thread
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray import exceptions
from submitit import SlurmJob
from sweeping import REPORT, STOPPING, grid_of, program, wait_for
from tiny_run import advprune, refusal

from pipeline.stopping import Terminated
from pipeline.sweep import on_ray, on_slurm, remote
from pipeline.sweep.backend import Terms
from pipeline.sweep.cell import Ended
from pipeline.sweep.on_slurm import OnSlurm

SAYS = f"print(json.dumps({REPORT!r} | {{'words': sys.argv[1:], 'in': os.getcwd()}}))"


def saving(path: Path) -> tuple[str, str]:
    """Of `STOPPING`: instead of ending, a file is made, and it ends when it likes."""
    return "sys.exit(143)", f"open({str(path)!r}, 'w').close()"


# What runs there ---------------------------------------------------------------------------------


def test_a_machine_that_shares_nothing_is_given_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, SAYS, monkeypatch)
    (cell,) = grid_of("sparsity=0.9")
    terms = Terms(Path("runs", "sweeps", "id"), ("--runs", "runs", "--storage", "s3://there"))
    recipe, text, words, _ = remote.arguments(cell, terms)
    there = tmp_path / "new" / "machine"
    ended = Ended(**json.loads(json.dumps(remote.work(recipe, text, words, str(there)))))
    assert ended.done and ended.report["in"] == str(there)
    said = f"-m pipeline run --recipe {recipe} --runs runs --storage s3://there --json"
    assert ended.report["words"] == said.split()
    assert (there / recipe).read_text() == cell.toml


# Signals to this very process: slow, to be in one in which not thousands of tests have run.
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_whoever_asks_a_worker_to_stop_asks_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    up = tmp_path / "up"
    program(tmp_path, STOPPING.format(up=str(up)), monkeypatch)
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR2)]

    def ask() -> None:
        wait_for(up.exists)
        if number == signal.SIGINT:
            _thread.interrupt_main()  # as Ray cancels
        else:
            os.kill(os.getpid(), number)

    threading.Thread(target=ask).start()
    ended = remote.work("cell.toml", "", [], str(tmp_path))
    assert ended["code"] == 143
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR2)] == before


def test_the_warning_that_time_runs_out_ends_no_run_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM sends it to every process of a job."""
    said = "os.kill(os.getpid(), signal.SIGUSR2); time.sleep(0.1); " + SAYS
    program(tmp_path, said, monkeypatch)
    assert Ended(**remote.work("cell.toml", "", [], str(tmp_path))).done


def test_a_run_whose_worker_is_killed_is_asked_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up, saved, real = tmp_path / "up", tmp_path / "saved", sys.executable
    program(tmp_path, STOPPING.format(up=str(up)).replace(*saving(saved)), monkeypatch)
    text = (
        f"import sys; sys.executable = {sys.executable!r}\n"
        f"from pipeline.sweep.remote import work; work('cell.toml', '', [], {str(tmp_path)!r})"
    )
    worker = subprocess.Popen([real, "-c", text])
    wait_for(up.exists)
    worker.kill()
    worker.wait()
    wait_for(saved.exists)


# Ray, without a cluster ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (exceptions.WorkerCrashedError(), 1),
        (exceptions.NodeDiedError("gone"), 1),
        (exceptions.LocalRayletDiedError(), 1),
        (exceptions.OutOfMemoryError("more than there is"), 71),
    ],
)
def test_a_worker_of_ray_that_died_is_a_cell_that_may_pass(error: Exception, code: int) -> None:
    result: Future[Any] = Future()
    result.set_exception(error)
    ended = on_ray._ended(result)
    assert ended.code == code and ended.may_pass and not ended.done
    assert type(error).__name__ in ended.error and "\n" not in ended.error


def test_what_is_wrong_with_us_is_no_death() -> None:
    result: Future[Any] = Future()
    result.set_exception(KeyError("a defect"))
    with pytest.raises(KeyError):
        on_ray._ended(result)


def test_a_cluster_that_does_not_answer_is_refused_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    handler = signal.getsignal(signal.SIGTERM)
    words = ("sweep", "--grid", "sparsity=0.5,0.9", "--backend", "ray", "--runs", str(tmp_path))
    result = advprune(*words)
    assert result.code == 69 and "no cluster at RAY_ADDRESS=127.0.0.1:9" in result.err
    assert list(tmp_path.rglob("*.toml")) == []  # nothing of a sweep that did not begin
    assert signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.parametrize(("name", "module"), [("ray", "on_ray"), ("slurm", "on_slurm")])
def test_an_extra_that_is_missing_is_named(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = {"ray": "ray", "slurm": "submitit"}[name]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"pipeline.sweep.{module}", raising=False)
    said = refusal(advprune("sweep", "--seeds", "2", "--backend", name), 69)
    assert f"pip install 'advprune[{name}]'" in said


# SLURM ------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with SLURM's programs, first on PATH."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    source = (Path(__file__).parent / "fake_slurm.py").read_text()
    for name in ("sbatch", "srun", "sacct", "scancel"):
        (folder / name).write_text(f"#!{sys.executable}\n{source}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(on_slurm, "LOOK", 0.05)
    monkeypatch.setattr(SlurmJob, "_results_timeout_s", 0)
    yield folder
    for path in (folder / "jobs").glob("*"):
        subprocess.run([str(folder / "scancel"), path.name], check=True)


def terms(tmp_path: Path, **slurm: Any) -> Terms:
    return Terms(tmp_path / "sweep", ("--runs", str(tmp_path)), gpus=2.0, slurm=slurm)


def test_a_cell_is_a_job(cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, SAYS, monkeypatch)
    (cell,) = grid_of("sparsity=0.9", threads=3)
    with OnSlurm(terms(tmp_path, partition="short", qos="low")) as engine:
        ended = engine.submit(cell).result(timeout=60)
    assert ended.done and ended.report["words"][-3:] == ["--runs", str(tmp_path), "--json"]
    batch = (cluster / "batch.sh").read_text()
    for line in ("cpus-per-task=3", "gpus-per-node=2", "partition=short", f"job-name={cell.run}"):
        assert f"#SBATCH --{line}\n" in batch
    assert "srun --unbuffered" in batch and " --cpus-per-task=3 " in batch
    assert "--time" not in batch  # the limit is the partition's
    assert (tmp_path / "sweep" / "jobs").stat().st_mode & 0o077 == 0  # there are pickles in it


@pytest.mark.parametrize(
    ("device", "gpus", "asked"), [("cpu", None, None), ("auto", None, 2), ("auto", 4.0, 4)]
)
def test_a_cell_of_several_ranks_has_cores_and_gpus_for_all(
    cluster: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    gpus: float | None,
    asked: int | None,
) -> None:
    program(tmp_path, SAYS, monkeypatch)
    (cell,) = grid_of("sparsity=0.9", threads=3)
    cell = replace(cell, recipe=cell.recipe.model_copy(update={"device": device}))
    with OnSlurm(Terms(tmp_path / "sweep", (), gpus=gpus, nproc=2)) as engine:
        assert engine.submit(cell).result(timeout=60).done
    batch = (cluster / "batch.sh").read_text()
    assert "#SBATCH --cpus-per-task=6\n" in batch
    assert (f"#SBATCH --gpus-per-node={asked}\n" in batch) == (asked is not None)
    assert ("gpus-per-node" in batch) == (asked is not None)


def test_a_job_that_is_gone_is_a_cell_that_may_pass(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "os.kill(os.getppid(), signal.SIGKILL)", monkeypatch)
    (cell,) = grid_of("sparsity=0.9")
    with OnSlurm(terms(tmp_path)) as engine:
        ended = engine.submit(cell).result(timeout=60)
    assert ended.may_pass and not ended.done and "NODE_FAIL" in ended.error


def test_a_job_that_is_refused_is_told_in_slurms_words(cluster: Path, tmp_path: Path) -> None:
    (cluster / "refuse").touch()
    (cell,) = grid_of("sparsity=0.9")
    with OnSlurm(terms(tmp_path, partition="gpu")) as engine:
        ended = engine.submit(cell).result(timeout=60)
    assert ended.may_pass and "invalid partition specified: gpu" in ended.error
    assert "--gpus-per-cell" not in ended.error  # which was asked for
    with OnSlurm(Terms(tmp_path / "sweep", (), nproc=2)) as engine:
        ended = engine.submit(cell).result(timeout=60)
    assert ended.error.endswith("2 GPUs were asked for, one for each rank; else --gpus-per-cell 0")


def test_where_a_sweep_is_broken_off_its_jobs_are_asked_to_stop(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up, saved = tmp_path / "up", tmp_path / "saved"
    text = STOPPING.format(up=str(up)).replace(
        "sys.exit(143)", f"open({str(saved)!r}, 'w').close()"
    )
    program(tmp_path, text + "\nsys.exit(143)", monkeypatch)
    (cell,) = grid_of("sparsity=0.9")
    with pytest.raises(Terminated), OnSlurm(terms(tmp_path)) as engine:
        engine.submit(cell)
        wait_for(up.exists)
        raise Terminated
    wait_for(saved.exists)
    # `timeout` asks a whole group of processes to stop, of which this one is to do its work.
    assert int((cluster / "canceller").read_text()) != os.getsid(0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--slurm", "partitoin=gpu"), r"Unavailable parameter\(s\): \['partitoin'\]"),
        (("--gpus-per-cell", "0.5"), "SLURM gives whole ones"),
    ],
)
def test_what_slurm_does_not_know_is_refused_before_anything_is_made(
    cluster: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    runs = tmp_path / "runs"
    result = advprune("sweep", "--seeds", "2", "--backend", "slurm", *words, "--runs", str(runs))
    assert re.search(said, refusal(result, 2))
    assert not runs.exists()


def test_slurm_without_a_cluster_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    said = refusal(advprune("sweep", "--seeds", "2", "--backend", "slurm"), 69)
    assert "no sbatch, srun, sacct, scancel here" in said
