"""One small run for all tests of finished runs: to make it takes half a minute.

Named as a plugin by the tests that use it. The first worker that needs the run makes it, while the
others wait; each works on a copy of its own.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict

import pytest
from tiny_run import TINY, Result, Tiny, advprune


@pytest.fixture(scope="session")
def clean_environment() -> Iterator[None]:
    """Out of the reach of the user's variables, and of those of CI that the gate looks at."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("ADVPRUNE_", "GITHUB_"))]:
            patch.delenv(name)
        patch.delenv("CI", raising=False)
        yield


@pytest.fixture(scope="session")
def tiny(clean_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # each worker has a folder of its own in that of the session
    made, told = root / "tiny-runs", root / "tiny-result.json"
    with (root / "tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not told.exists():
            told.write_text(json.dumps(asdict(advprune("run", "--runs", made, *TINY))))
    runs = shutil.copytree(made, tmp_path_factory.mktemp("tiny") / "runs", symlinks=True)
    return Tiny(runs, Result(**json.loads(told.read_text())), (runs / "latest").resolve())
