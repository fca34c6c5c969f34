"""The squares of the Square attack in the Euclidean norm: mass moves from one window to another.

(Algorithm 3 of Andriushchenko et al. 2020.) Where little of the ball's radius is used, a new bump
costs nothing; where all of it is, the bump takes the place of what another window held.
"""

import torch
from torch import Tensor

from advprune.repro import ImageRandom
from advprune.types import Images, Threat, per_image

_TINY = 1e-12
# A first grid of five bumps by five, as in the paper.
_GRID = 5


def first(x: Images, threat: Threat, rng: ImageRandom) -> Images:
    """A grid of bumps of random sign and turn, on the sphere, cut to the box."""
    channels, height, width = x.shape[1:]
    side = max(min(height, width) // _GRID, 1)
    rows, columns = height // side, width // side
    signs = 2.0 * rng.integers(2, channels, rows, columns).to(x.dtype) - 1.0
    bumps = _bumps(rng.integers(2, 1, rows, columns) == 1, side, x)
    tiles = signs[..., None, None] * bumps
    offset = torch.zeros_like(x)
    top, start = (height - rows * side) // 2, (width - columns * side) // 2
    offset[:, :, top : top + rows * side, start : start + columns * side] = tiles.transpose(
        3, 4
    ).reshape(len(x), channels, rows * side, columns * side)
    return _on_the_sphere(offset, x, threat)


def then(best: Images, x: Images, threat: Threat, rng: ImageRandom, side: int) -> Images:
    """The best image so far with a bump in one window that takes its mass from another.

    Args:
        side: of the windows in pixels; made odd and at least three, so that a bump has a middle.
    """
    channels, height, width = x.shape[1:]
    side = min(max(side, 3) | 1, height, width)
    offset = best - x
    drawn = rng.bits(5 + channels)
    tops, starts = drawn[:, 0:2] % (height - side + 1), drawn[:, 2:4] % (width - side + 1)
    bump = _bumps(drawn[:, 4, None] % 2 == 1, side, x)
    signs = 2.0 * (drawn[:, 5:, None, None] % 2).to(x.dtype) - 1.0

    into, out_of = (_window(tops[:, k], starts[:, k], side, x) for k in (0, 1))
    held = offset[into]
    either = torch.zeros_like(x, dtype=torch.bool)
    either[into] = either[out_of] = True
    unused = (threat.eps**2 - threat.length(offset).square()).clamp_min(0.0)
    windows = (offset * either).square().sum(dim=(2, 3), keepdim=True)
    available = (windows + per_image(unused) / channels).sqrt()

    fresh = signs * bump + held / _size(held)
    offset[out_of] = 0.0
    offset[into] = fresh / _size(fresh) * available
    return _on_the_sphere(offset, x, threat)


def _on_the_sphere(offset: Tensor, x: Images, threat: Threat) -> Images:
    """The box may have cut the offset before, so it is put back to full length first."""
    full = offset * per_image(threat.eps / threat.length(offset).clamp_min(_TINY))
    return threat.project(x + full, x)


def _size(window: Tensor) -> Tensor:
    """Euclidean norms over the pixels of a window, one for each channel."""
    return window.square().sum(dim=(-2, -1), keepdim=True).sqrt().clamp_min(_TINY)


def _window(tops: Tensor, starts: Tensor, side: int, x: Images) -> tuple[Tensor, ...]:
    """Indices of each image's own window, in all channels: they broadcast to (N, C, side, side)."""
    images = torch.arange(len(x), device=x.device)
    channels = torch.arange(x.shape[1], device=x.device)
    steps = torch.arange(side, device=x.device)
    return (
        images[:, None, None, None],
        channels[None, :, None, None],
        (tops[:, None] + steps)[:, None, :, None],
        (starts[:, None] + steps)[:, None, None, :],
    )


def _bumps(turned: Tensor, side: int, x: Images) -> Tensor:
    """Two heaps of opposite sign side by side, at Euclidean length one: (*turned, side, side).

    One lies above the other, or left of it where `turned`.
    """
    half = side // 2
    bump = torch.cat([_heap(half, side, x), -_heap(side - half, side, x)])
    bump = bump / bump.norm()
    return torch.where(turned[..., None, None], bump.T, bump)


def _heap(height: int, width: int, x: Images) -> Tensor:
    """Sums of 1/(k+1)^2 from the distance to the middle on, at Euclidean length one."""
    count = max(height // 2, width // 2) + 1
    rises = 1.0 / torch.arange(1, count + 1, device=x.device, dtype=x.dtype).square()
    heights = rises.flip(0).cumsum(0).flip(0)
    rows = (torch.arange(height, device=x.device) - height // 2).abs()
    columns = (torch.arange(width, device=x.device) - width // 2).abs()
    heap = heights[torch.maximum(rows[:, None], columns[None, :])]
    return heap / heap.norm()
