"""Work on a file that may be hostile, or whose cost is to be seen, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.errors import DeployError

_REFUSALS = (2, 65, 66, 69, 78)


def ask(module: str, words: Sequence[str], about: Path, seconds: float | None = None) -> str:
    """The last line that `python -m MODULE WORDS` prints.

    Args:
        module: of this package; it refuses with one line on stderr and an exit code.
        about: the file in question, for messages.
        seconds: wall time that it may take.

    Raises:
        DeployError: as the module refuses; 65, it died or took too long.
    """
    # The child finds this package where this process did, and nothing in the current folder.
    places = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", module, *words],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))},
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise DeployError(f"{about}: its process took more than {seconds:g} s", 65) from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        known = done.returncode in _REFUSALS
        message = (
            said[-1] if known else f"{about}: its process ended {done.returncode} ({said[-1]})"
        )
        raise DeployError(message, done.returncode if known else 65)
    return done.stdout.splitlines()[-1]
