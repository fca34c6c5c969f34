"""Promise: every cell of a grid is run once, whatever dies meanwhile, and what came out is kept."""

import json
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sweeping import DONE, REPORT, STOPPING, grid_of, program, wait_for
from tiny_run import TINY, advprune, refusal

from pipeline.commands import sweep as command
from pipeline.stopping import Terminated
from pipeline.sweep import carrying
from pipeline.sweep.backend import Terms
from pipeline.sweep.carrying import carry_out
from pipeline.sweep.cell import Ended, Processes, read
from pipeline.sweep.grid import Cell, axes, cells
from pipeline.sweep.local import Local

# The grid ---------------------------------------------------------------------------------------


def test_a_cell_for_every_combination_in_the_order_in_which_it_was_given() -> None:
    found = grid_of("method=hydra,random", "sparsity=0.9,0.95", seeds=2)
    assert [cell.title for cell in found[:3]] == [
        "method=hydra sparsity=0.9 seed=0",
        "method=hydra sparsity=0.9 seed=1",
        "method=hydra sparsity=0.95 seed=0",
    ]
    assert len({cell.run for cell in found}) == 8
    assert {(c.recipe.method, c.recipe.sparsity, c.recipe.seed) for c in found} == {
        (m, s, i) for m in ("hydra", "random") for s in (0.9, 0.95) for i in (0, 1)
    }


def test_values_are_those_of_a_setting() -> None:
    found = axes(["quantize.how=ptq, qat", "prune.epochs=1,2", "eps=0.1,8/255"], None)
    assert found == {
        "quantize.how": ["ptq", "qat"],
        "prune.epochs": [1, 2],
        "eps": [0.1, "8/255"],
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to vary"),
        (("--grid", "sparsity"), "expected KEY=VALUE,VALUE"),
        (("--grid", "sparsity=0.9,"), "expected KEY=VALUE,VALUE"),
        (("--grid", "=0.9"), "expected KEY=VALUE,VALUE"),
        (("--grid", "sparsity=0.9,0.9"), "a value is there twice"),
        (("--grid", "sparsity=0.9", "--grid", "sparsity=0.5"), "has values already"),
        (("--grid", "sparsity=0.9,90"), "cell sparsity=90: .*did you mean 0.90"),
        (("--grid", "prune.epoch=1"), "cell prune.epoch=1: .*did you mean prune.epochs"),
        (("--grid", "seed=0,1", "--seeds", "2"), "give one of them"),
        (("--seeds", "0"), "1 or more"),
        (("--seeds", "2", "--workers", "0"), "at least 1"),
        (("--seeds", "2", "--retries", "-1"), "at least 0"),
        (("--seeds", "2", "--nproc", "0"), "1 or more"),
        (("--grid", "sparsity=0.5,0.9", "--set", "sparsity=0.7"), "are the same run"),
        (("--seeds", "2", "--backend", "rai"), "did you mean ray"),
        (("--seeds", "2", "--backend", "ray", "--gpus-per-cell", "1.5"), "whole ones"),
        (("--seeds", "2", "--backend", "ray", "--gpus-per-cell", "-1"), "whole ones"),
        (("--seeds", "2", "--gpus-per-cell", "0.5"), "all cells see the same GPUs"),
        (("--seeds", "2", "--slurm", "partition=gpu"), "is for --backend slurm"),
        (("--seeds", "2", "--slurm", "gpu"), "expected KEY=VALUE"),
    ],
)
def test_nonsense_is_refused_in_one_line_before_anything_is_made(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    runs = tmp_path / "runs"
    assert re.search(said, refusal(advprune("sweep", *words, "--runs", str(runs)), 2))
    assert not runs.exists()


def test_cells_that_prune_otherwise_begin_from_one_dense_network() -> None:
    found = grid_of("method=hydra,random", "sparsity=0.9,0.95", "finetune.epochs=1,2")
    assert len({cell.dense for cell in found}) == 1
    assert len({cell.dense for cell in grid_of("eps=0.1,0.2", seeds=2)}) == 4


def test_a_recipe_is_written_out_and_says_how_many_threads(tmp_path: Path) -> None:
    (cell,) = cells({"sparsity": [0.9]}, {"preset": "subset", "data": "digits"}, None, [], 3)
    assert cell.recipe.threads == 3 and "threads = 3" in cell.toml
    path = tmp_path / "cell.toml"
    path.write_text(cell.toml)
    (again,) = cells({"sparsity": [0.9]}, {}, path, [], 5)
    assert again.recipe == cell.recipe and again.run == cell.run


# Carrying out -----------------------------------------------------------------------------------


class Work:
    """Ends cells as a script says, attempt by attempt, and remembers the order."""

    def __init__(self, script: dict[str, list[Ended]] | None = None) -> None:
        self.script = script or {}
        self.begun: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, cell: Cell) -> Ended:
        with self._lock:
            self.begun.append(cell.run)
            left = self.script.get(cell.title)
            return left.pop(0) if left else DONE


def ends(
    found: list[Cell], work: Callable[[Cell], Ended], workers: int = 2, retries: int = 1
) -> dict[str, Any]:
    with ThreadPoolExecutor(workers) as pool:
        told = list(carry_out(found, lambda cell: pool.submit(work, cell), retries))
    assert len(told) == len(found)
    return {cell.title: (ended.code, attempts) for cell, ended, attempts in told}


def test_every_cell_is_carried_out_once() -> None:
    found, work = grid_of("sparsity=0.5,0.9", seeds=3), Work()
    assert set(ends(found, work).values()) == {(0, 1)}
    assert sorted(work.begun) == sorted(cell.run for cell in found)


def test_one_cell_of_each_dense_network_goes_ahead() -> None:
    found = grid_of("sparsity=0.5,0.9,0.95", seeds=2)
    ahead = {cell.dense: cell.run for cell in reversed(found)}
    finished: set[str] = set()

    def work(cell: Cell) -> Ended:
        assert cell.run == ahead[cell.dense] or ahead[cell.dense] in finished
        time.sleep(0.01)
        finished.add(cell.run)
        return DONE

    ends(found, work, workers=6)
    assert len(finished) == 6


@pytest.mark.parametrize("code", [-9, -11, 1, 71, 137, 143])
def test_a_cell_that_died_is_tried_again_so_often(code: int) -> None:
    found = grid_of("sparsity=0.5,0.9")
    dead = Ended(code, "dead")
    assert ends(found, Work({"sparsity=0.5": [dead]})) == {
        "sparsity=0.5": (0, 2),
        "sparsity=0.9": (0, 1),
    }
    twice = Work({"sparsity=0.5": [dead, dead]})
    assert ends(found, twice)["sparsity=0.5"] == (code, 2)
    assert ends(found, Work({"sparsity=0.5": [dead]}), retries=0)["sparsity=0.5"] == (code, 1)


@pytest.mark.parametrize("code", [2, 65, 66, 69, 78])
def test_what_is_wrong_with_the_input_is_not_tried_again(code: int) -> None:
    work = Work({"sparsity=0.5": [Ended(code, "refused")]})
    assert ends(grid_of("sparsity=0.5,0.9"), work)["sparsity=0.5"] == (code, 1)


def test_a_busy_stage_counts_as_no_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "PAUSE", 0.01)
    work = Work({"sparsity=0.9": [Ended(75, "busy")] * 3})

    def slowly(cell: Cell) -> Ended:
        time.sleep(0.05 * (cell.title != "sparsity=0.9"))
        return work(cell)

    assert ends(grid_of("sparsity=0.5,0.9,0.95"), slowly, retries=0)["sparsity=0.9"] == (0, 1)
    assert len(work.begun) == 3 + 3


def test_an_engine_begins_one_cell_at_a_time_for_whoever_carries_out() -> None:
    """A future that ends long after it was handed out, in whatever thread."""
    found, handed = grid_of("sparsity=0.5,0.9,0.95"), []

    def submit(cell: Cell) -> Future[Ended]:
        future: Future[Ended] = Future()
        handed.append((cell, future))
        return future

    told = carry_out(found, submit, 0)
    threading.Timer(0.1, lambda: handed[0][1].set_result(Ended(1, "lost"))).start()
    assert next(told) == (found[0], Ended(1, "lost"), 1)
    assert [cell for cell, _ in handed] == found
    for _, future in handed[1:]:
        future.set_result(DONE)
    assert [ended for _, ended, _ in told] == [DONE, DONE]


# A process --------------------------------------------------------------------------------------


def test_a_cell_is_a_run_of_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = f"print(json.dumps({REPORT!r} | {{'words': sys.argv[1:]}})); sys.exit(10)"
    program(tmp_path, said, monkeypatch)
    ended = Processes().run(tmp_path / "cell.toml", ["--runs", "there"])
    words = f"-m pipeline run --recipe {tmp_path}/cell.toml --runs there --json".split()
    assert (ended.code, ended.done, ended.report["words"]) == (10, True, words)


@pytest.mark.parametrize(
    ("text", "code", "error"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, "killed by SIGKILL"),
        ("print(json.dumps({'error': 'what', 'exit_code': 65})); sys.exit(65)", 65, "what"),
        ("raise ValueError", 1, "ended in a traceback"),
        ("print('no report'); sys.exit(0)", 1, "ended with 0 and without a report"),
    ],
)
def test_the_death_of_a_cell_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, code: int, error: str
) -> None:
    program(tmp_path, text, monkeypatch)
    ended = Processes().run(tmp_path / "cell.toml", [])
    assert ended.code == code and ended.error.startswith(error) and not ended.done


def test_all_processes_are_asked_to_stop_and_none_begins_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, STOPPING.format(up=str(tmp_path / "up")), monkeypatch)
    ended: list[Future[Ended]] = []
    with pytest.raises(Terminated), Local(Terms(tmp_path, ())) as engine:
        ended += [engine.submit(cell) for cell in grid_of("sparsity=0.5,0.9")]
        wait_for((tmp_path / "up").exists)
        raise Terminated
    assert [one.result().code for one in ended] == [143, 143]
    assert ended[1].result().error == "not begun"


def test_only_a_run_that_ended_in_a_verdict_is_done() -> None:
    assert read(11, json.dumps(REPORT)).done
    assert not read(0, "").done and not read(2, json.dumps(REPORT)).done


# The command ------------------------------------------------------------------------------------


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Runs of which the one at 0.9 is refused; no page is made."""
    recipes: list[Path] = []

    def run(self: Processes, recipe: Path, words: Sequence[str]) -> Ended:
        recipes.append(recipe)
        return Ended(65, "bad") if "sparsity = 0.9 " in recipe.read_text() else DONE

    monkeypatch.setattr(Processes, "run", run)
    monkeypatch.setattr(command, "gather", lambda folders, page: (page, [], []))
    monkeypatch.setattr(command, "board", lambda *_, **__: 0)
    return recipes


def test_a_sweep_records_every_cell_and_ends_with_the_code_of_what_failed(
    scripted: list[Path], tmp_path: Path
) -> None:
    words = ("sweep", "--grid", "sparsity=0.5,0.9", "--seeds", "2", "--runs", str(tmp_path))
    result = advprune(*words, "--json")
    assert result.code == 65
    rows = result.json["cells"]
    (record,) = (tmp_path / "sweeps").glob("*/sweep.json")
    assert json.loads(record.read_text()) == {"cells": rows}
    assert [row["state"] for row in rows] == ["done", "done", "failed", "failed"]
    assert rows[0]["chosen"] == {"sparsity": 0.5, "seed": 0}
    assert (rows[0]["verdict"], rows[0]["clean"], rows[0]["worst"]) == ("PASS", 0.9, 0.5)
    assert (rows[2]["code"], rows[2]["error"], rows[2]["attempts"]) == (65, "bad", 1)
    assert all((record.parent / row["recipe"]).is_file() for row in rows)
    assert len(scripted) == 4
    shown = advprune(*words)
    assert "failed (65): sparsity=0.9 seed=1: bad" in shown.out
    assert "4/4" in shown.out
    assert len(list((tmp_path / "sweeps").iterdir())) == 1  # the same grid, the same folder


def test_a_sweep_whose_cells_all_end_is_a_success(scripted: list[Path], tmp_path: Path) -> None:
    assert advprune("sweep", "--grid", "sparsity=0.5,0.6", "--runs", str(tmp_path)).code == 0


@pytest.mark.slow
def test_a_cell_that_is_killed_is_run_again_and_the_dense_network_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    original = Processes.run

    def run(self: Processes, recipe: Path, words: Sequence[str]) -> Ended:
        if not killed and "sparsity = 0.8 " in recipe.read_text():
            killed.append(1)
            thread = threading.Thread(target=_kill_soon, args=(self,))
            thread.start()
        return original(self, recipe, words)

    monkeypatch.setattr(Processes, "run", run)
    words = ("--grid", "sparsity=0.8,0.9", "--grid", "method=magnitude,random", *TINY)
    result = advprune("sweep", *words, "--workers", "2", "--runs", str(tmp_path), "--json")
    assert result.code == 0
    rows = result.json["cells"]
    assert sorted(row["attempts"] for row in rows) == [1, 1, 1, 2]
    assert len(list((tmp_path / "store").glob("adversarial-*"))) == 1
    assert len(list((tmp_path / "store").glob("prune-*"))) == 4
    assert (tmp_path / "board.html").is_file()


def _kill_soon(processes: Processes) -> None:
    deadline = time.monotonic() + 60
    while not processes._running and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(3.0)
    for process in list(processes._running):
        os.kill(process.pid, 9)
        return
