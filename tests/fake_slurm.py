"""SLURM's programs on one machine, as far as they are used: each is this file under its name.

Jobs begin at once and in turn: `sbatch` starts the batch file in a session of its own, `scancel`
signals all of that, `sacct` says what has become of it. `srun` is the command it is given.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
JOBS = HERE / "jobs"


def sbatch(batch: str) -> None:
    if (HERE / "refuse").exists():
        sys.stderr.write("sbatch: error: invalid partition specified: gpu\n")
        sys.exit(1)
    job = str(time.time_ns() // 1000)  # no test sees another's
    env = {"SLURM_JOB_ID": job, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}
    env |= {"SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    process = subprocess.Popen(
        ["bash", batch],
        env={**os.environ, **env},
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    JOBS.mkdir(exist_ok=True)
    (JOBS / job).write_text(str(process.pid))
    (HERE / "batch.sh").write_text(Path(batch).read_text().replace("%j", job))
    sys.stdout.write(f"Submitted batch job {job}\n")


def srun(*words: str) -> None:
    taking = ("--output", "--error")
    rest = list(words)
    while rest[0].startswith("--"):
        rest = rest[2:] if rest[0] in taking else rest[1:]
    os.execvp(rest[0], rest)


def sacct() -> None:
    sys.stdout.write("JobID|State|NodeList\n")
    for path in JOBS.iterdir():
        state = "RUNNING" if _lives(int(path.read_text())) else "NODE_FAIL"
        sys.stdout.write(f"{path.name}|{state}|here\n")


def scancel(*jobs: str) -> None:
    (HERE / "canceller").write_text(str(os.getsid(0)))
    for process in Path("/proc").glob("[0-9]*"):
        if any(_is_of(job, process) for job in jobs):
            os.kill(int(process.name), signal.SIGTERM)


def _is_of(job: str, process: Path) -> bool:
    """As SLURM's control groups know it, whatever session a process is in."""
    try:
        return f"SLURM_JOB_ID={job}".encode() in (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    name, words = Path(sys.argv[0]).name, sys.argv[1:]
    if name == "sacct":
        sacct()
    else:
        {"sbatch": sbatch, "srun": srun, "scancel": scancel}[name](*words)
