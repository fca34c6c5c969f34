"""Promise: a sweep on a Ray cluster makes every cell once, whatever dies, and stops where asked."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from sweeping import DONE, grid_of, wait_for
from tiny_run import TINY, advprune

from advprune.errors import Unavailable
from pipeline.stopping import Terminated
from pipeline.sweep import on_ray
from pipeline.sweep.backend import Terms
from pipeline.sweep.cell import Ended
from pipeline.sweep.on_ray import OnRay

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two machines of one core each, as far as Ray can tell; their address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield str(cluster.address)
        cluster.shutdown()


@pytest.fixture(autouse=True)
def joined(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster)


def runs_below(folder: Path, word: str) -> list[Path]:
    """The processes, as /proc has them, of runs with a recipe of this name below a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "--recipe" in words and str(folder) in " ".join(words) and word in " ".join(words):
            found.append(process)
    return found


def test_a_worker_is_killed_and_every_cell_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    submit = OnRay.submit

    def kill(recipe: str) -> None:
        wait_for(lambda: runs_below(tmp_path, recipe), 300)
        time.sleep(3.0)
        status = (runs_below(tmp_path, recipe)[0] / "status").read_text()
        killed.append(int(status.split("PPid:")[1].split()[0]))
        assert "ray::" in Path(f"/proc/{killed[0]}/cmdline").read_text()
        os.kill(killed[0], signal.SIGKILL)

    def submitting(self: OnRay, cell: Any) -> Any:
        if not killed and cell.recipe.sparsity == 0.8 and cell.recipe.method == "random":
            threading.Thread(target=kill, args=(cell.run,)).start()
        return submit(self, cell)

    monkeypatch.setattr(OnRay, "submit", submitting)
    words = ("--grid", "sparsity=0.8,0.85,0.9", "--grid", "method=magnitude,random", *TINY)
    result = advprune("sweep", *words, "--backend", "ray", "--runs", str(tmp_path), "--json")
    assert result.code == 0, result
    assert len(killed) == 1
    rows = result.json["cells"]
    assert sorted(row["attempts"] for row in rows) == [1, 1, 1, 1, 1, 2]
    assert all((tmp_path / row["run"] / "report.html").is_file() for row in rows)
    for stage, count in {"standard": 1, "adversarial": 1, "prune": 6, "verify": 6}.items():
        assert len(list((tmp_path / "store").glob(f"{stage}-*"))) == count
    assert not list((tmp_path / "store").glob(".*"))
    assert (tmp_path / "board.html").is_file()


def engine(tmp_path: Path, **terms: Any) -> OnRay:
    return OnRay(Terms(tmp_path, ("--runs", str(tmp_path)), **terms))


def replaced(monkeypatch: pytest.MonkeyPatch, work: Callable[..., dict[str, Any]]) -> None:
    """A function of this file is pickled whole; workers do not have the file."""
    monkeypatch.setattr(on_ray, "work", work)


def test_a_worker_that_dies_is_an_end_and_the_next_cell_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(recipe: str, *_: object) -> dict[str, Any]:
        import os

        if "s0.8_" in recipe:
            os.kill(os.getpid(), 9)
        return {"code": 2, "error": "told"}

    replaced(monkeypatch, work)
    found = grid_of("sparsity=0.8,0.9", threads=1)
    with engine(tmp_path) as one:
        ends = [one.submit(cell) for cell in found]
        dead, told = [end.result(timeout=120) for end in ends]
    assert dead.may_pass and dead.error.startswith("WorkerCrashedError")
    assert told == Ended(2, "told", told.report)
    assert not ray.is_initialized()


def test_where_a_sweep_is_broken_off_workers_are_asked_to_stop_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up, saved = str(tmp_path / "up"), tmp_path / "saved"

    def work(*_: object, saved: str = str(saved)) -> dict[str, Any]:
        import time
        from pathlib import Path

        Path(up).touch()
        try:
            while True:
                time.sleep(0.1)
        except KeyboardInterrupt:
            time.sleep(1.0)
            Path(saved).touch()
        return {"code": 143}

    replaced(monkeypatch, work)
    (first, second, third) = grid_of("sparsity=0.8,0.85,0.9", threads=1)
    with pytest.raises(Terminated), engine(tmp_path) as one:
        for cell in (first, second, third):  # the third waits for a core
            one.submit(cell)
        wait_for(Path(up).exists, 120)
        raise Terminated
    assert saved.exists()


def test_what_no_machine_of_the_cluster_has_is_refused_instead_of_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unavailable, match="no machine of the Ray cluster has more than 0 GPUs"):
        engine(tmp_path, gpus=0.5).__enter__()
    assert not ray.is_initialized()
    replaced(monkeypatch, lambda *_: {"code": 0, "report": dict(DONE.report)})
    fits, does_not = [grid_of("sparsity=0.9", threads=threads)[0] for threads in (1, 2)]
    with engine(tmp_path) as one:
        ended = one.submit(does_not).result()
        assert ended.code == 69 and "no machine of the Ray cluster has more than 1" in ended.error
        assert one.submit(fits).result(timeout=60) == DONE
