"""Memory that does not suffice is told with its limit, and nothing is tried with less."""

import re
import resource
from pathlib import Path

import pytest
import torch
from crashing import Crash
from forkserver import Job
from tiny_run import TINY

from advprune.errors import OutOfMemory
from pipeline.memory import largest, limit, memory_errors

pytest_plugins = ["crash_fixtures"]


def test_a_stage_that_needs_more_than_there_is(crash: Crash, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    words = ["run", "--runs", str(runs), "--model", "dying:hungry", *TINY]
    words += ["--set", "standard.batch_size=1000"]
    # Less than the gigabyte of a batch; ample for threads, each of which asks for a heap.
    end = crash.children.run(Job("dying:command", tuple(words), memory_limit=700_000_000))
    assert end.code == 71, end.err
    line = end.err.splitlines()[-1]
    assert line.startswith("advprune: standard: out of memory at a batch size of 1000: ")
    assert "--set standard.batch_size=N, which is another recipe" in line
    used, most = (
        int(n.replace(",", "")) for n in re.findall(r"([0-9,]{7,}) (?:bytes )?(?:were|are)", line)
    )
    assert 0 < used < most
    # The images were good; of the stage nothing is left.
    assert [path.name.split("-")[0] for path in (runs / "store").iterdir()] == ["data"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("[ONNXRuntimeError] : 6 : bad allocation"),
    ],
)
def test_whoever_says_it(error: Exception) -> None:
    told = pytest.raises(OutOfMemory, match="verify: out of memory: ")
    with told as refusal, memory_errors("verify", None, "cpu"):
        raise error
    assert refusal.value.exit_code == 71
    assert "\n" not in str(refusal.value)
    assert "batch" not in str(refusal.value)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="a bug"), memory_errors("prune", 8, "cpu"):
        raise RuntimeError("a bug")


def test_the_limit_is_the_lowest_of_those_that_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    found = limit("cpu")
    assert largest() < found
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (12345, 12345))
    assert limit("cpu") == 12345
