"""Which code makes an artefact: its release and, in a checkout, its commit and locked packages."""

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

from pipeline.files import sha256

ROOT = Path(__file__).parent.parent
_LOCK = "requirements/run.txt"
# The commit, and "-dirty" where a file that it knows was changed since.
_DESCRIBE = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def provenance(root: Path = ROOT) -> dict[str, str]:
    """What is known of the code below `root`; "commit" and "lock" only in a checkout of it."""
    known = {"advprune": version("advprune")}
    # Installed into another project, git would name that project's commit.
    if (root / ".git").exists() and (commit := _commit(root)):
        known["commit"] = commit
    if (lock := root / _LOCK).is_file():
        known["lock"] = f"sha256 {sha256(lock)} of {_LOCK}"
    return known


def _commit(root: Path) -> str | None:
    """None where there is no git, no commit yet, or a checkout that git does not trust."""
    words = ["git", "-C", str(root), *_DESCRIBE]
    quiet = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(words, env=quiet, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
