"""Work on several ranks of this machine, gloo between them; what they find out comes in files."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

Work = Callable[[Path], None]


def on_ranks(count: int, work: Work, folder: Path) -> None:
    """Call `work(folder / RANK)` on each; the folders are made.

    Args:
        work: a function of a module, which each process imports anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    multiprocessing.spawn(_rank, (count, work, folder), count)  # pyright: ignore[reportPrivateImportUsage]


def _rank(rank: int, count: int, work: Work, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        # Not a port that was free: by the time all are up, another test may have taken it.
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=count,
        timeout=timedelta(minutes=2),
    )
    mine = folder / str(rank)
    mine.mkdir(parents=True)
    try:
        work(mine)
    finally:
        dist.destroy_process_group()
