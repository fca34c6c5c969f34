"""A part of a batch computed as a part of the whole: batch norm and random layers look beyond it.

Ranks and accumulated pieces see some rows of a batch each. Batch norm takes its statistics over
the rows of all ranks (Ioffe & Szegedy 2015 over the whole batch); what layers draw at random is
drawn for the whole batch, of which a part takes its rows. So the number of ranks changes nothing
but the order of sums. Accumulated pieces come one after the other, so that batch norm cannot look
beyond its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from advprune import ranks
from advprune.rank_sums import average
from advprune.synced_norm import batch_norm

_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout)


@dataclass(frozen=True)
class Rows:
    """Which rows (N,) of a batch of `of` images a part has."""

    positions: Tensor
    of: int


_at_work: list[Rows] = []


@contextmanager
def as_whole(rows: Rows, synced: bool) -> Iterator[None]:
    """Compute so within, in this thread.

    Args:
        synced: whether batch norm looks at the rows of all ranks, or at its own.
    """
    if len(rows.positions) == rows.of:
        yield
        return
    _at_work.append(rows)
    try:
        with _Whole(rows, synced and ranks.count() > 1):
            yield
    finally:
        _at_work.pop()


def average_statistics(net: nn.Module) -> None:
    """Running statistics of the same bits on all ranks, after each has looked at its own rows."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    average(
        norm.get_buffer(name)
        for norm in norms
        if norm.running_mean is not None
        for name in ("running_mean", "running_var")
    )


def drawn(draw: Callable[[int], Tensor], images: int) -> Tensor:
    """What `draw(N)` gives for the N images of the batch, or their rows of the whole batch's.

    Args:
        images: N, or a multiple where a network is shown the batch several times over.
    """
    return _rows_of(draw, images, _at_work[-1]) if _at_work else draw(images)


def _rows_of(draw: Callable[[int], Tensor], images: int, rows: Rows) -> Tensor:
    times = images // len(rows.positions)
    whole = draw(times * rows.of)
    chosen = torch.cat([rows.positions + rows.of * turn for turn in range(times)])
    return whole[chosen.to(whole.device)]


class _Whole(TorchFunctionMode):
    def __init__(self, rows: Rows, synced: bool) -> None:
        super().__init__()
        self._rows, self._synced = rows, synced

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.batch_norm and self._synced and given.get("training"):
            return batch_norm(*args, **given)
        if func in _DROPOUTS and given.get("training"):
            return self._dropped(func, *args, **given)
        return func(*args, **given)

    def _dropped(self, func: Callable[..., Tensor], x: Tensor, **given: Any) -> Tensor:
        given["inplace"] = False
        ones = torch.ones_like(x[:1])

        def draw(images: int) -> Tensor:
            return func(ones.expand(images, *x.shape[1:]).contiguous(), **given)

        return x * _rows_of(draw, len(x), self._rows)
