"""The Square attack for one image: algorithms 1 to 3 of Andriushchenko et al. 2020 with loops."""

import math

import torch
from torch import Tensor

from advprune.repro import ImageRandom
from advprune.types import Threat
from oracles.one_image import Classify, margin

_OF_10000 = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def attack(
    classify: Classify,
    x: Tensor,
    y: int,
    threat: Threat,
    rng: ImageRandom,
    queries: int,
    p_init: float,
    schedule: int,
) -> tuple[Tensor, int]:
    """The image, and how often the model was asked, the image itself not counted.

    Args:
        rng: the stream of this image alone.
    """
    if margin(classify(x), y) > 0:
        return x, 0
    height, width = x.shape[1:]
    best, greatest, asked, tried = x, -math.inf, 0, set[tuple[int, ...]]()
    for query in range(queries):
        passed = sum(query * 10_000 > point * schedule for point in _OF_10000)
        side = round(math.sqrt(p_init * height * width / 2**passed))
        side = max(1, min(side, height, width))
        patch, room = None, 0
        if threat.norm == "l2":
            new = _bumps(x, threat, rng) if query == 0 else _moved(best, x, threat, rng, side)
        elif query == 0:
            new = _stripes(x, threat, rng)
        else:
            new, patch = _patched(best, x, threat, rng, side)
            room = (height - side + 1) * (width - side + 1) * 2 ** len(x)
        if patch is not None and room <= queries // 4:
            if (key := (side, *patch)) in tried:
                continue
            tried.add(key)
        asked += 1
        here = float(margin(classify(new), y))
        if here > greatest:
            best, greatest = new, here
            tried.clear()
        if greatest > 0:
            break
    return best, asked


def _stripes(x: Tensor, threat: Threat, rng: ImageRandom) -> Tensor:
    up = rng.integers(2, len(x), 1, x.shape[2])[0]
    new = x.clone()
    for channel in range(len(x)):
        for column in range(x.shape[2]):
            sign = 1.0 if up[channel, 0, column] == 1 else -1.0
            new[channel, :, column] += sign * threat.eps
    return new.clamp(threat.low, threat.high)


def _patched(
    best: Tensor, x: Tensor, threat: Threat, rng: ImageRandom, side: int
) -> tuple[Tensor, list[int]]:
    top, start, *ups = rng.bits(2 + len(x))[0].tolist()
    top, start = top % (x.shape[1] - side + 1), start % (x.shape[2] - side + 1)
    ups = [up % 2 for up in ups]
    for signs in (ups, [1 - up for up in ups]):
        new = best.clone()
        for channel, up in enumerate(signs):
            window = (channel, slice(top, top + side), slice(start, start + side))
            moved = x[window] + (threat.eps if up else -threat.eps)
            new[window] = moved.clamp(threat.low, threat.high)
        if not torch.equal(new, best):
            return new, [top, start, *signs]
    return new, [top, start, *signs]


def _bumps(x: Tensor, threat: Threat, rng: ImageRandom) -> Tensor:
    channels, height, width = x.shape
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    signs = rng.integers(2, channels, rows, columns)[0]
    turned = rng.integers(2, 1, rows, columns)[0, 0]
    offset = torch.zeros_like(x)
    top, start = (height - rows * side) // 2, (width - columns * side) // 2
    for i in range(rows):
        for j in range(columns):
            for channel in range(channels):
                sign = 1.0 if signs[channel, i, j] == 1 else -1.0
                down, right = top + i * side, start + j * side
                offset[channel, down : down + side, right : right + side] = sign * _bump(
                    side, bool(turned[i, j] == 1)
                )
    return _full(offset, x, threat)


def _moved(best: Tensor, x: Tensor, threat: Threat, rng: ImageRandom, side: int) -> Tensor:
    channels, height, width = x.shape
    side = max(side, 3)
    side = min(side + 1 if side % 2 == 0 else side, height, width)
    drawn = rng.bits(5 + channels)[0].tolist()
    corners = [(drawn[k] % (height - side + 1), drawn[2 + k] % (width - side + 1)) for k in (0, 1)]
    into, out_of = ((slice(top, top + side), slice(start, start + side)) for top, start in corners)
    offset = best - x
    unused = max(threat.eps**2 - float((offset**2).sum()), 0.0)
    changed = offset.clone()
    for channel in range(channels):
        held = offset[channel]
        either = torch.zeros_like(held)
        either[into] = either[out_of] = 1.0
        available = math.sqrt(float((held**2 * either).sum()) + unused / channels)
        sign = 1.0 if drawn[5 + channel] % 2 == 1 else -1.0
        fresh = sign * _bump(side, drawn[4] % 2 == 1)
        if float(held[into].norm()) > 0:
            fresh = fresh + held[into] / held[into].norm()
        changed[channel][out_of] = 0.0
        # A bump that meets its opposite leaves nothing, but for what was rounded.
        changed[channel][into] = fresh / max(float(fresh.norm()), 1e-12) * available
    return _full(changed, x, threat)


def _full(offset: Tensor, x: Tensor, threat: Threat) -> Tensor:
    return (x + offset * (threat.eps / offset.norm())).clamp(threat.low, threat.high)


def _bump(side: int, turned: bool) -> Tensor:
    """Two heaps of opposite sign, one above the other, at length one (equation 2 of the paper)."""
    heaps = [_heap(side // 2, side), -_heap(side - side // 2, side)]
    both = torch.cat([heap / heap.norm() for heap in heaps if heap.numel()])
    both = both / both.norm()
    return both.T if turned else both


def _heap(height: int, width: int) -> Tensor:
    heap, n = torch.zeros(height, width, dtype=torch.float64), max(height // 2, width // 2)
    for r in range(height):
        for s in range(width):
            steps = n - max(abs(r - height // 2), abs(s - width // 2))
            heap[r, s] = sum(1.0 / (n + 1 - k) ** 2 for k in range(steps + 1))
    return heap
