"""One thread per process: tests share their cores. One worker for files that share a run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data._utils import signal_handling

torch.set_num_threads(1)
# A loader of images leaves a handler of SIGCHLD in its process for good. Where thousands of other
# tests have run in it, the kernel could at times not deliver that signal, and ended the process.
signal_handling._SIGCHLD_handler_set = True


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """A test starts as it does when it runs alone, whatever ran before it."""
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)  # a recipe may have asked for more


# Files whose tests share something that takes long to make -> the group that one worker has.
TOGETHER = {
    "test_pipeline.py": "run",
    "test_structured_run.py": "structured run",
    "test_quantize_stage.py": "quantize stage",
    "test_attack_command.py": "attack command",
    **dict.fromkeys(
        (
            "test_killed.py",
            "test_full_disk.py",
            "test_metrics_lines.py",
            "test_out_of_memory.py",
            "test_races.py",
            "test_sigterm.py",
        ),
        "crash",
    ),
    "test_ranks_run.py": "ranks run",
    "test_ranks_methods.py": "ranks methods",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """Groups first, then every other test by itself.

    `--dist loadgroup` would read marks, but it tells the scheduler of them through names of tests
    that this pytest no longer lets it change.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER.get(Path(nodeid.partition("::")[0]).name, nodeid)

    return ByGroup(config, log)
