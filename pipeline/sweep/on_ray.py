"""Cells on a Ray cluster, or on this machine under Ray: each a task, beside fractions of a GPU."""

import logging
import os
import signal
import socket
import sys
from concurrent.futures import Future
from contextlib import redirect_stdout
from typing import Self

import ray
from ray.exceptions import OutOfMemoryError, RayError

from advprune.errors import OutOfMemory, Refused, Unavailable
from pipeline.stopping import LAST
from pipeline.sweep.backend import Terms
from pipeline.sweep.cell import Ended
from pipeline.sweep.grid import Cell
from pipeline.sweep.remote import LOST, arguments, work

_ANSWER = 10.0  # seconds that a cluster has to take a connection


class OnRay:
    """Ray begins a task where so many cores as a cell keeps busy are free, and its share of a GPU.

    The cluster is that of RAY_ADDRESS, or one of this machine alone, for as long as the sweep is.
    """

    def __init__(self, terms: Terms) -> None:
        gpus = terms.gpus
        if gpus is not None and (gpus < 0 or (gpus > 1 and gpus % 1)):
            raise Refused(f"--gpus-per-cell {gpus:g}: a share of one, as 0.5, or whole ones")
        self._terms = terms
        self._tasks: dict[Future[Ended], ray.ObjectRef] = {}
        self._cores, self._gpus = 0, 0.0
        # Ray tells what it thinks of workers on standard output, which is for what was asked.
        self._aside = redirect_stdout(sys.stderr)

    def __enter__(self) -> Self:
        _connect()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._cores = int(max(node.get("CPU", 0) for node in nodes))
        gpus = max(node.get("GPU", 0.0) for node in nodes)
        asked = self._terms.gpus
        if asked is not None and asked > gpus:
            ray.shutdown()
            raise Unavailable(
                f"--gpus-per-cell {asked:g}: no machine of the Ray cluster has more than {gpus:g} "
                "GPUs; leave it out, or start Ray where they are"
            )
        self._gpus = min(1.0, gpus) * self._terms.nproc if asked is None else asked
        self._aside.__enter__()
        return self

    def __exit__(self, *broken_off: object) -> None:
        tasks = list(self._tasks.values())
        if any(broken_off) and tasks:
            for task in tasks:
                ray.cancel(task)
            ray.wait(tasks, num_returns=len(tasks), timeout=2 * LAST)
        ray.shutdown()
        self._aside.__exit__(None, None, None)

    def submit(self, cell: Cell) -> Future[Ended]:
        ended: Future[Ended] = Future()
        cores = self._terms.cores(cell)
        if cores > self._cores:
            ended.set_result(
                Ended(
                    Unavailable.exit_code,
                    f"{cores} cores: no machine of the Ray cluster has more than {self._cores}; "
                    f"give --set threads={max(1, self._cores // self._terms.nproc)}, or less "
                    "--nproc",
                )
            )
            return ended
        gpus = 0.0 if cell.recipe.device == "cpu" else self._gpus
        # Attempts are counted where they are for every engine.
        options = {"num_cpus": cores, "num_gpus": gpus, "max_retries": 0}
        task = ray.remote(work).options(**options).remote(*arguments(cell, self._terms))
        self._tasks[ended] = task

        def finish(result: Future) -> None:
            del self._tasks[ended]
            ended.set_result(_ended(result))

        task.future().add_done_callback(finish)
        return ended


def _connect() -> None:
    """Raises Unavailable where there is no cluster, or none can be started."""
    address = os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it tells its makers of every use
    handler = signal.getsignal(signal.SIGTERM)
    dashboard = False if address == "local" else None  # another cluster has its own, or none
    try:
        _demand_answer(address)
        ray.init(
            address, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR
        )
    except (OSError, RuntimeError, ValueError, RayError) as error:
        reason = " ".join(str(error).split())
        raise Unavailable(
            f"--backend ray: no cluster at RAY_ADDRESS={address} ({reason}); start one with "
            "`ray start --head`, or leave RAY_ADDRESS out"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray has put its own there


def _demand_answer(address: str) -> None:
    """Raises OSError where nobody listens: Ray would go on asking for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()


def _ended(result: Future) -> Ended:
    """What a task came to; one whose worker or machine died, or that had no memory, ended so."""
    try:
        return Ended(**result.result())
    except OutOfMemoryError as error:
        return Ended(OutOfMemory.exit_code, _first_line(error))
    except RayError as error:
        return Ended(LOST, _first_line(error))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
