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
from advprune.rank_sums import average, differentiable_total

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
    for module in net.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            average([module.running_mean, module.get_buffer("running_var")])


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
            return _batch_norm(*args, **given)
        if func in _DROPOUTS and given.get("training"):
            return self._dropped(func, *args, **given)
        return func(*args, **given)

    def _dropped(self, func: Callable[..., Tensor], x: Tensor, **given: Any) -> Tensor:
        given["inplace"] = False
        ones = torch.ones_like(x[:1])

        def draw(images: int) -> Tensor:
            return func(ones.expand(images, *x.shape[1:]).contiguous(), **given)

        return x * _rows_of(draw, len(x), self._rows)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` in training mode, with the statistics of the rows of all ranks.

    torch's own `SyncBatchNorm` is for GPUs only.
    """
    assert training
    precise = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    over = [axis for axis in range(x.dim()) if axis != 1]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    values = torch.full((1,), x.numel() / x.shape[1], dtype=precise.dtype, device=x.device)
    sums = differentiable_total(torch.cat([precise.sum(over), values]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = precise - mean.view(shape)
    variance = differentiable_total(centred.square().sum(over)) / count
    with torch.no_grad():
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            unbiased = variance * (count / (count - 1.0))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    found = centred * scale.view(shape)
    return (found if bias is None else found + bias.view(shape)).to(x.dtype)
