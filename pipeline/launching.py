"""`--nproc N`: the same command once for each rank, as `torchrun` would start it."""

import logging
import signal
import sys
from typing import TYPE_CHECKING
from uuid import uuid4

import torch

from advprune.errors import Refused, Unavailable
from advprune.ranks import RankLost
from pipeline.devices import resolve_device
from pipeline.stopping import LAST, Terminated

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

_AGAIN = "the same command goes on from the last checkpoint"


def demand_room(nproc: int, device: str) -> None:
    """Whether this machine can start so many ranks.

    Raises:
        Refused: less than one, or several on one named GPU.
        Unavailable: more than there are GPUs.
    """
    if nproc < 1:
        raise Refused(f"--nproc {nproc}: processes that train together, 1 or more")
    resolved = resolve_device(device)
    if nproc == 1 or not resolved.startswith("cuda"):
        return
    if ":" in resolved:
        raise Refused(f"--nproc {nproc} --device {device}: each takes a GPU; give --device cuda")
    if nproc > (there := torch.cuda.device_count()):
        raise Unavailable(f"--nproc {nproc}: this machine has {there} GPUs; give --nproc {there}")


def launch(nproc: int) -> int:
    """Start the command that this process was given in `nproc` processes, and wait for all.

    Returns:
        The exit code of the one that all others ended for, and that has said why; 0 if none failed.

    Raises:
        RankLost: a signal killed one of them, or none has said why.
        Terminated, KeyboardInterrupt: this process was asked to end, and so were they.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What ends, and why, is said by the ranks and below.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,  # a rank does not come back alone: the command is given again
        shutdown_timeout=int(LAST) + 5,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "pipeline", *sys.argv[1:])
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise Terminated(f"terminated; {_AGAIN}") from None
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=lambda entry: _guilt(entry[1]))
        if failure.exitcode > 0 and failure.exitcode != RankLost.exit_code:
            return failure.exitcode
        how = f"ended with {failure.exitcode}"
        if failure.exitcode < 0:
            how = f"was killed by {signal.Signals(-failure.exitcode).name}"
        raise RankLost(f"rank {rank} (process {failure.pid}) {how}; {_AGAIN}") from None
    return 0


def _guilt(failure: "ProcessFailure") -> tuple[int, int]:
    """In which order failures are to blame for those of the others, and when they were."""
    code = failure.exitcode
    # What is killed takes the others along, which lose it or are asked to end, and may be seen
    # first; so does what refuses.
    kinds = {RankLost.exit_code: 2, -signal.SIGTERM: 3}
    return kinds.get(code, 0 if code < 0 else 1), failure.timestamp
