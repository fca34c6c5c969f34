"""A run on two ranks: one writes, a rank that dies ends it, and the next start goes on exactly."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_run import TINY, advprune
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from pipeline.launching import _guilt, demand_room
from pipeline.stage import read_artifact
from pipeline.store import checkpoints_in

ROOT = Path(__file__).parents[1]
TRAINED = ("standard", "adversarial", "prune", "finetune", "quantize")
ROUNDS = ("--set", "adversarial.epochs=12", "--set", "quantize.how=auto")
WORDS = ["run", "--method", "hydra", "--sparsity", "0.8", *TINY, *ROUNDS]


def command(runs: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", *words, *WORDS, "--runs", str(runs), "--checkpoint-steps", "2"]


def by_nproc(runs: Path) -> list[str]:
    return [*command(runs, "pipeline"), "--nproc", "2"]


def by_torchrun(runs: Path) -> list[str]:
    launcher = ["torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return command(runs, *launcher, "--nproc-per-node", "2", "-m", "pipeline")


def start(words: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def digests(runs: Path) -> dict[str, dict[str, str]]:
    """SHA-256 of all files of the stages that train."""
    found = {}
    for name in TRAINED:
        (folder,) = (runs / "store").glob(f"{name}-*")
        files = read_artifact(folder).manifest["files"]
        found[name] = {file: entry["sha256"] for file, entry in files.items()}
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    process = start(by_nproc(runs))
    _, errors = process.communicate(timeout=300)
    assert process.returncode in (0, 10), errors
    return runs


@contextmanager
def training(runs: Path, words: list[str]) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """A run in the middle of its adversarial training, and the processes of its ranks."""
    process = start(words)
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            folders = list((runs / "store").glob(".tmp-adversarial-*"))
            if folders and checkpoints_in(folders[0]):
                break
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 2
        yield process, [int(child) for child in children]
    finally:
        process.kill()
        process.wait()


@pytest.mark.ddp
@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run_and_the_next_start_goes_on(
    tmp_path: Path, undisturbed: Path
) -> None:
    with training(tmp_path, by_nproc(tmp_path)) as (process, children):
        os.kill(children[1], signal.SIGKILL)
        out, errors = process.communicate(timeout=300)
    assert process.returncode == 71, (out, errors)
    assert f"rank 1 (process {children[1]}) was killed by SIGKILL" in errors
    assert "the same command goes on from the last checkpoint" in errors
    assert "Traceback" not in errors
    process = start(by_nproc(tmp_path))
    out, errors = process.communicate(timeout=300)
    assert process.returncode in (0, 10), errors
    assert digests(tmp_path) == digests(undisturbed)


@pytest.mark.ddp
@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_stops_at_a_checkpoint(
    tmp_path: Path, undisturbed: Path
) -> None:
    with training(tmp_path, by_nproc(tmp_path)) as (process, _):
        process.terminate()
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 143, errors
    assert "the same command goes on from the last checkpoint" in errors
    assert "Traceback" not in errors
    process = start(by_torchrun(tmp_path))
    _, errors = process.communicate(timeout=300)
    assert process.returncode in (0, 1), errors  # torchrun's own, whatever that of a rank
    assert digests(tmp_path) == digests(undisturbed)


@pytest.mark.ddp
@pytest.mark.slow
def test_a_finished_run_is_found_and_says_what_it_came_to(undisturbed: Path) -> None:
    process = start([*by_nproc(undisturbed), "--json"])
    out, errors = process.communicate(timeout=300)
    report = json.loads(out)  # one document, of one rank
    assert (process.returncode, report["verdict"]["status"]) in ((0, "PASS"), (10, "FAIL"))
    assert not errors.count("Traceback")


@pytest.mark.ddp
@pytest.mark.slow
def test_what_is_refused_is_said_once(tmp_path: Path) -> None:
    words = [*by_nproc(tmp_path), "--set", "finetune.objective=nonsense"]
    process = start(words)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert errors.count("finetune.objective") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.ddp
@pytest.mark.slow
def test_what_the_first_rank_alone_finds_out_is_said_once(tmp_path: Path) -> None:
    """While the others wait: no one else is to blame."""
    process = start([*by_nproc(tmp_path), "--limit-train", "600"])
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 65
    assert "600 images to train on leave 60" in errors
    assert len(errors.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def failure(code: int, timestamp: int) -> ProcessFailure:
    made = ProcessFailure(local_rank=0, pid=1, exitcode=code, error_file="")
    made.timestamp = timestamp
    return made


@pytest.mark.parametrize(
    ("codes", "first"),
    [
        ((71, -9), 1),  # killed: the other one lost it
        ((65, -15), 0),  # refused: the other one was asked to end
        ((-15, 65), 1),
        ((71, 10), 1),
        ((-15, 71), 1),
        ((65, 2), 0),  # the earlier one
    ],
)
def test_who_is_to_blame(codes: tuple[int, int], first: int) -> None:
    failures = [failure(code, when) for when, code in enumerate(codes)]
    assert min(failures, key=_guilt) is failures[first]


def test_there_must_be_room_for_all_ranks() -> None:
    demand_room(4, "cpu")
    assert advprune("run", *TINY, "--nproc", "0").err.startswith("advprune: --nproc 0: ")
