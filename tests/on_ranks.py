"""Work on several ranks of this machine, gloo between them; what they find out comes in files."""

import socket
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_rank, (count, port, work, folder), count)  # pyright: ignore[reportPrivateImportUsage]


def _rank(rank: int, count: int, port: int, work: Work, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
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
