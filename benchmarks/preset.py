"""How long the default preset takes from end to end, stage by stage, and how much memory.

    .venv/bin/python benchmarks/preset.py [--quick]

`advprune run --method harp --sparsity 0.99` in a fresh folder and a process of its own: seconds of
the whole command, seconds of each stage from its manifest, and the largest resident set of the
process, in which all stages run.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from side_by_side import conditions

COMMAND = (sys.executable, "-m", "pipeline")
PRESET = ("run", "--method", "harp", "--sparsity", "0.99")
# As little as a run can do: only to try it out.
QUICK = {
    "limit_test": 100,
    "attack_steps": 1,
    "standard.epochs": 1,
    "adversarial.epochs": 1,
    "prune.epochs": 1,
    "finetune.epochs": 1,
    "quantize.how": "ptq",
    "verify.steps": 2,
    "verify.queries": 2,
    "verify.restarts": 1,
    "verify.images": 20,
    "verify.fmn": 2,
    "verify.health": 8,
}


@dataclass(frozen=True)
class Cost:
    """Of one command: its seconds, its peak memory in bytes, the seconds of stages by name."""

    seconds: float
    peak: int
    stages: dict[str, float]


def run(quick: bool = False) -> Cost:
    """Run the preset.

    Raises:
        SystemExit: it did not end in a passing verdict (if quick, in any verdict).
    """
    changes = [word for key, value in QUICK.items() for word in ("--set", f"{key}={value}")]
    with tempfile.TemporaryDirectory() as runs:
        words = [*PRESET, "--runs", runs, *(changes if quick else [])]
        code, seconds, peak = command(words)
        if code not in ((0, 10, 11) if quick else (0,)):
            raise SystemExit(f"preset: advprune {' '.join(words)} ended in code {code}")
        return Cost(seconds, peak, stages(Path(runs)))


def command(words: Sequence[str]) -> tuple[int, float, int]:
    """Exit code, seconds and peak memory in bytes of one `advprune`, which says nothing here."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, peak_memory(process.pid))
        time.sleep(0.01)
    return process.returncode, time.perf_counter() - started, peak


def peak_memory(process: int | str = "self") -> int:
    """The largest resident set in bytes that a process has had; 0 when it is gone.

    Not of `getrusage`: what a process was born with there is the memory of its parent.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0


def stages(runs: Path) -> dict[str, float]:
    """Seconds of every stage that was made in this folder, the longest first."""
    manifests = [json.loads(path.read_text()) for path in runs.glob("store/*/manifest.json")]
    seconds = {manifest["stage"]: manifest["seconds"] for manifest in manifests}
    return dict(sorted(seconds.items(), key=lambda pair: -pair[1]))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="hardly any work: only to try it out")
    options = parser.parse_args(words)
    cost = run(options.quick)
    for stage, seconds in cost.stages.items():
        sys.stdout.write(f"{stage:12} {seconds:7.1f} s\n")
    sys.stdout.write(f"{'all':12} {cost.seconds:7.1f} s, {cost.peak / 1e9:.2f} GB at most\n")
    sys.stdout.write(f"{conditions(1)}\n")


if __name__ == "__main__":
    main()
