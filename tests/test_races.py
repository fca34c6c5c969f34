"""Of several starts on one folder one runs, and the others say who it is instead of waiting."""

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from crashing import Crash

pytest_plugins = ["crash_fixtures"]
STAGE = "prune"
HOLDER = re.compile(rf"in use by process (\d+) on {re.escape(socket.gethostname())}; wait for it")


@pytest.mark.parametrize("rounds", [7, pytest.param(100, marks=pytest.mark.slow)])
def test_one_runs_and_the_others_are_told_who(
    rounds: int,
    crash: Crash,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    whole, refused = crash.whole[STAGE], 0
    for number in range(rounds):
        starts, root = 2 + number % 7, tmp_path / str(number)
        ends = crash.children.together([crash.job(STAGE, root)] * starts)
        assert {end.code for end in ends} <= {0, 75}, [end.err for end in ends]
        winner = [end for end in ends if end.out]  # it wrote checkpoints
        assert len(winner) == 1
        for end in ends:
            if end.code:
                holder = HOLDER.search(end.err)
                assert holder, end.err
                assert int(holder[1]) != os.getpid()
                assert end.seconds < winner[0].seconds, "it waited"
                refused += 1
            else:
                assert end.result[1] == whole.digest
        left = [path.name for path in (root / "runs" / "store").iterdir()]
        assert left == [Path(whole.path).name]
    record_property("trials", rounds)
    # One that is slow to begin may find the work done instead.
    assert refused > rounds
