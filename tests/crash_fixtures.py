"""A server of processes that may die, for all tests of what they leave.

Named as a plugin by the tests that use it.
"""

from collections.abc import Iterator

import pytest
from crashing import NEEDS, Crash
from forkserver import children


@pytest.fixture(scope="session")
def crash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crash]:
    root = tmp_path_factory.mktemp("crash")
    with children(root) as server:
        found = Crash(server, {})
        for stage in NEEDS:
            found.whole[stage] = found.undisturbed(stage, root)
        yield found
