"""Which rows are for which rank: some of every batch that is learned, whole blocks elsewhere."""

import math

import torch
from torch import Tensor

from advprune import ranks
from advprune.errors import Refused
from advprune.ranks import total


def own_rows(rows: Tensor, pieces: int = 1) -> Tensor:
    """The rows (N,) of a batch that are for this rank: a run of them, of nearly equal length.

    Raises:
        Refused: the batch has fewer rows than `pieces` for each rank.
    """
    if len(rows) < ranks.count() * pieces:
        raise Refused(
            f"a batch of {len(rows)} images cannot be shared by {ranks.count()} ranks in {pieces} "
            "pieces each; give a larger batch_size, or fewer of either"
        )
    return rows.tensor_split(ranks.count())[ranks.number()]


def blocks(rows: int, size: int) -> list[Tensor]:
    """Positions 0, 1, ... in blocks of `size`, those that are this rank's: every so manieth.

    A block is computed as it would be by one rank alone, in the same bits.
    """
    return list(torch.arange(rows).split(size)[ranks.number() :: ranks.count()])


def in_order(part: Tensor, rows: int, size: int) -> Tensor:
    """What all ranks made of their `blocks`, in the order of the rows, bit by bit.

    Args:
        part: (n, ...) of this rank's blocks, one after the other; n may be 0.
    """
    if ranks.count() == 1:
        return part
    # As bytes, of which all but one rank have zeros: a sum of numbers would turn -0.0 into 0.0.
    flat = part.contiguous().view(len(part), math.prod(part.shape[1:])).view(torch.uint8)
    whole = flat.new_zeros(rows, flat.shape[1])
    places = torch.cat([torch.arange(0), *blocks(rows, size)])
    whole[places.to(part.device)] = flat
    return total(whole).view(part.dtype).view(rows, *part.shape[1:])


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        sizes = torch.zeros(ranks.count(), dtype=torch.int64, device=rows.device)
        sizes[ranks.number()] = len(rows)
        ctx.sizes = total(sizes).tolist()
        whole = rows.new_zeros(sum(ctx.sizes), *rows.shape[1:])
        whole.split(ctx.sizes)[ranks.number()].copy_(rows)
        return total(whole)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        return total(gradients[0]).split(ctx.sizes)[ranks.number()]


def joined(rows: Tensor) -> Tensor:
    """The rows of all ranks, in their order, for a loss that is the sum of what all make of theirs.

    Args:
        rows: (N, ...), another N on each rank.
    """
    return rows if ranks.count() == 1 else _Joined.apply(rows)  # pyright: ignore[reportReturnType]
