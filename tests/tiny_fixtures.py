"""One small run for all tests of finished runs: to make it takes half a minute.

Named as a plugin by the tests that use it. `conftest.py` gives them all to one worker, which makes
it once.
"""

import os
from collections.abc import Iterator

import pytest
from tiny_run import TINY, Tiny, advprune


@pytest.fixture(scope="session")
def clean_environment() -> Iterator[None]:
    """Out of the reach of the user's variables; CI is one that `--update-baseline` looks at."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("ADVPRUNE_")]:
            patch.delenv(name)
        patch.delenv("CI", raising=False)
        yield


@pytest.fixture(scope="session")
def tiny(clean_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    runs = tmp_path_factory.mktemp("tiny") / "runs"
    result = advprune("run", "--runs", runs, *TINY)
    return Tiny(runs, result, (runs / "latest").resolve())
