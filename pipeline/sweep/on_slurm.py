"""Cells as jobs of a SLURM cluster, by submitit: a batch file and a pickled call each."""

import shutil
import subprocess
import threading
from concurrent.futures import Future
from typing import Any, Self

from submitit import Job, SlurmExecutor
from submitit.core.utils import FailedSubmissionError, UncompletedJobError

from advprune.errors import Refused, Unavailable
from pipeline.files import make_folder
from pipeline.sweep.backend import Terms
from pipeline.sweep.cell import Ended
from pipeline.sweep.grid import Cell
from pipeline.sweep.remote import LOST, arguments, work

LOOK = 2.0  # seconds between looks for results, which are files; sacct is asked less often
_PROGRAMS = ("sbatch", "srun", "sacct", "scancel")


class OnSlurm:
    """SLURM begins a job when it likes; a thread looks which have ended.

    submitit's pickles are in `jobs` of the sweep's folder, which only its owner can enter: they are
    written and read by the jobs and this process alone.
    """

    def __init__(self, terms: Terms) -> None:
        missing = [program for program in _PROGRAMS if shutil.which(program) is None]
        if missing:
            raise Unavailable(
                f"--backend slurm: no {', '.join(missing)} here; type it on a machine that submits "
                "jobs of the cluster"
            )
        if terms.gpus is not None and (terms.gpus < 0 or terms.gpus % 1):
            raise Refused(
                f"--gpus-per-cell {terms.gpus:g}: SLURM gives whole ones; for shares see whether "
                "your cluster has --slurm gres=shard:1"
            )
        self._folder = terms.folder.absolute() / "jobs"
        self._executor = SlurmExecutor(self._folder)
        self._terms = terms
        try:
            self._executor.update_parameters(**self._parameters("", 1, terms.gpus))
        except ValueError as error:
            raise Refused(f"--slurm: {' '.join(str(error).split())}") from None
        self._jobs: dict[Job[dict[str, Any]], Future[Ended]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        make_folder(self._folder)
        self._folder.chmod(0o700)
        self._thread.start()
        return self

    def __exit__(self, *broken_off: object) -> None:
        self._over.set()
        self._thread.join()
        if any(broken_off) and self._jobs:
            # In a session of its own: whoever broke off may have asked a whole group of processes
            # to stop, as `timeout` does, and this is to reach the cluster all the same.
            command = ["scancel", *(job.job_id for job in self._jobs)]
            subprocess.run(command, start_new_session=True, check=False)

    def submit(self, cell: Cell) -> Future[Ended]:
        ended: Future[Ended] = Future()
        gpus, nproc, why = self._terms.gpus, self._terms.nproc, ""
        if gpus is None and nproc > 1 and cell.recipe.device != "cpu":
            gpus = nproc
            why = f"; {nproc} GPUs were asked for, one for each rank; else --gpus-per-cell 0"
        cores = self._terms.cores(cell)
        self._executor.update_parameters(**self._parameters(cell.run, cores, gpus))
        try:
            job = self._executor.submit(work, *arguments(cell, self._terms))
        except (UncompletedJobError, FailedSubmissionError, OSError) as error:
            ended.set_result(Ended(LOST, f"sbatch: {_one_line(error)}{why}"))
        else:
            self._jobs[job] = ended
        return ended

    def _parameters(self, name: str, cores: int, gpus: float | None) -> dict[str, Any]:
        """Of `SlurmExecutor`; those of --slurm before ours."""
        wanted = {} if gpus is None else {"gpus_per_node": int(gpus)}
        return {
            "job_name": name,
            "time": None,  # the partition's limit, not submitit's 5 minutes
            "cpus_per_task": cores,
            "srun_args": [f"--cpus-per-task={cores}"],  # which no longer inherits it
            **wanted,
            **self._terms.slurm,
        }

    def _look(self) -> None:
        while not self._over.wait(LOOK):
            for job, ended in list(self._jobs.items()):
                try:
                    if not job.done():
                        continue
                    result = Ended(**job.result())
                except UncompletedJobError as error:  # a traceback, or no end: killed, node gone
                    result = Ended(LOST, f"job {job.job_id}: {_one_line(error)}")
                except Exception as error:  # whatever it is, the sweep waits for this end
                    ended.set_exception(error)
                    raise
                del self._jobs[job]
                ended.set_result(result)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:1000]
