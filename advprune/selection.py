"""The k-th largest of many numbers, exactly, without sorting them.

Two ways to the same mask: one for the CPU, one that never makes a GPU wait for the host.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Below this a plain partition is as fast; a sample of this size brackets the k-th within 3 %.
_SAMPLE = 16_384
_DIGIT = 11  # bits that one pass of the radix selection decides


def top_on_host(values: NDArray[np.floating], keep: int) -> NDArray[np.bool_]:
    """The mask of the `keep` largest values (N,); among equal values the lowest index wins.

    Values that are surely above or surely below are only counted: a sample tells between which two
    the k-th lies (Floyd and Rivest 1975), and the few in between are partitioned. Where the sample
    misled, all are.

    Args:
        values: finite.
        keep: 1 <= keep <= N.
    """
    threshold = _kth_largest(values, keep)
    mask = values > threshold
    owed = keep - int(np.count_nonzero(mask))
    mask[np.flatnonzero(values == threshold)[:owed]] = True
    return mask


def _kth_largest(values: NDArray[np.floating], keep: int) -> np.floating:
    size = len(values)
    if size > 4 * _SAMPLE:
        step = size // _SAMPLE
        sample = np.sort(values[::step])[::-1]
        middle, slack = keep / step, 3.0 * np.sqrt(min(keep, size - keep) / step) + 3.0
        low = sample[min(int(middle + slack), len(sample) - 1)]
        high = sample[max(int(middle - slack), 0)]
        above = int(np.count_nonzero(values > high))
        between = values[(values >= low) & (values <= high)]
        if above < keep <= above + len(between):
            values, keep, size = between, keep - above, len(between)
    return np.partition(values, size - keep)[size - keep]


def top_on_device(values: Tensor, keep: int) -> Tensor:
    """The same mask by radix selection (11 bits a pass), without a word to the host.

    Args:
        values: float32 or float64 (N,), finite, on any device.
        keep: 1 <= keep <= N.
    """
    whole = {torch.float32: torch.int32, torch.float64: torch.int64}[values.dtype]
    width = 8 * values.element_size()
    # Minus zero becomes zero; then the bits of floats are in the order of the floats, but for the
    # negative ones, which are reversed by flipping all bits but the sign's.
    bits = (values + 0.0).view(whole)
    keys = torch.where(bits < 0, bits ^ torch.iinfo(whole).max, bits)
    keys = keys ^ torch.iinfo(whole).min  # from here on in the order of unsigned numbers
    owed = torch.full((1,), keep, device=values.device)
    chosen = torch.zeros_like(values, dtype=torch.bool)
    alive = torch.ones_like(chosen)
    for shift in range(width - _DIGIT, -_DIGIT, -_DIGIT):
        # The last pass takes the bits that are left.
        size = 1 << min(_DIGIT, _DIGIT + shift)
        digits = ((keys >> max(shift, 0)) & (size - 1)).long()
        found = torch.zeros(size, dtype=torch.long, device=values.device)
        found.scatter_add_(0, digits, alive.long())
        at_least = found.flip(0).cumsum(0).flip(0)
        # The digit of the k-th: the last one that has at least `owed` at or above it.
        # In one dimension: an index without any would be read by the host.
        digit = (at_least >= owed).sum(0, keepdim=True) - 1
        owed = owed - (at_least[digit] - found[digit])
        chosen |= alive & (digits > digit)
        alive &= digits == digit
    return chosen | (alive & (alive.cumsum(0) <= owed))
