"""A disk that is full costs nothing but the write that did not fit."""

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from crashing import Crash
from tiny_run import TINY, Result, refusal

from pipeline.checkpoints import Checkpoints
from pipeline.stage import MANIFEST

pytest_plugins = ["crash_fixtures"]
STAGE = "prune"
ROOM = re.compile(r"[0-9,]+ bytes are needed, [0-9,]+ bytes are free: make room, or choose another")
Record = Callable[[str, object], None]


def left_to_go_on_from(root: Path) -> float:
    """The step of the newest checkpoint, every one there being whole; infinite once complete."""
    store = root / "runs" / "store"
    if list(store.glob(f"*/{MANIFEST}")):
        return math.inf
    for folder in store.glob(".tmp-*"):
        if saved := Checkpoints(folder, pytest.fail).latest():
            return saved[0]
    return 0


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_whichever_write_does_not_fit_the_run_says_so_and_goes_on_later(
    every: int, crash: Crash, tmp_path: Path, record_property: Record
) -> None:
    whole, messages = crash.whole[STAGE], []
    numbers = range(1, whole.operations + 1, every)
    for number in numbers:
        root = tmp_path / str(number)
        end = crash.build(STAGE, root, fault_at=number, fault="full")
        if end.code:
            assert end.code == 74, (number, end)
            assert end.err.count("\n") == 1
            assert "No space left on device" in end.err
            assert "bytes are free" in end.err
            messages.append(end.err)
            saved = [int(line) for line in end.out.splitlines()]
            assert left_to_go_on_from(root) >= max(saved, default=0)
        again = crash.build(STAGE, root)
        assert again.code == 0, (number, again.err)
        assert again.result[1] == whole.digest
    record_property("trials", len(numbers))
    # All but those of the lock and of names say how much was needed.
    assert sum(bool(ROOM.search(message)) for message in messages) >= 0.5 * len(messages)


@pytest.mark.slow
def test_files_of_no_size_are_lost_where_larger_ones_do_not_fit(
    crash: Crash, tmp_path: Path, record_property: Record
) -> None:
    whole = crash.whole[STAGE]
    largest = 70_000
    codes = []
    for number in range(50):
        # What a child says goes into files, too.
        root, size = tmp_path / str(number), 1000 + number * largest // 49
        end = crash.build(STAGE, root, file_limit=size)
        codes.append(end.code)
        if end.code:
            assert end.code == 74, (size, end)
            assert "File too large" in end.err
        again = crash.build(STAGE, root)
        assert again.code == 0, (size, again.err)
        assert again.result[1] == whole.digest
    record_property("trials", len(codes))
    assert codes[0] == 74
    assert codes[-1] == 0
    assert codes == sorted(codes, reverse=True), "what fits in less fits in more"


@pytest.mark.slow
def test_a_disk_of_a_megabyte(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m none disk && exec "$@"', "sh"]
    if subprocess.run([*mount, "true"], cwd=tmp_path, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount; the sweeps above need no mount")
    words = [
        *mount,
        Path(sys.executable).with_name("advprune"),
        "run",
        "--runs",
        "disk/runs",
        *TINY,
    ]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    message = refusal(Result(done.returncode, done.stdout, done.stderr), 74)
    assert "No space left on device" in message
    assert ROOM.search(message)
