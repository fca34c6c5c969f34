"""Randomness that depends on what it is for, never on when or in which batch it is drawn.

Every random number is a function of (seed, purpose, image, draw). So a batch size, a resumed run
or a second worker changes nothing, and no generator has state that a checkpoint could miss.
"""

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def _int64(x: int) -> int:
    """The integer that an int64 holds after x wrapped around."""
    return (x + (1 << 63)) % (1 << 64) - (1 << 63)


_GOLDEN = _int64(0x9E3779B97F4A7C15)
_MIX_1 = _int64(0xBF58476D1CE4E5B9)
_MIX_2 = _int64(0x94D049BB133111EB)


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. `derive(seed, "order", epoch)`."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A fresh CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64, which torch only shifts arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection that looks random."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


class ImageRandom:
    """One independent random stream for each image of a batch, on any device.

    Args:
        seed: from `derive`.
        indices: (N,) int64, the identity of each image in its data set.
    """

    def __init__(self, seed: int, indices: Tensor) -> None:
        self._keys = _mix(_mix(indices.to(torch.int64) * _GOLDEN) + seed)
        self._draws = 0

    def subset(self, keep: Tensor) -> "ImageRandom":
        """The streams of some of the images (bool (N,) or int64 positions), where they stand."""
        chosen = object.__new__(ImageRandom)
        chosen._keys = self._keys[keep]
        chosen._draws = self._draws
        return chosen

    def fork(self, purpose: str) -> "ImageRandom":
        """Independent streams for the same images."""
        forked = object.__new__(ImageRandom)
        forked._keys = _mix(self._keys + derive(0, purpose))
        forked._draws = 0
        return forked

    def bits(self, *shape: int) -> Tensor:
        """int64 (N, *shape), uniform over [0, 2**53)."""
        self._draws += 1
        count = 1
        for size in shape:
            count *= size
        counter = torch.arange(count, device=self._keys.device)
        stream = _mix(self._keys + _int64(self._draws * _MIX_1))
        mixed = _mix(stream[:, None] + (counter + 1) * _GOLDEN)
        return _shift(mixed, 11).reshape(-1, *shape)

    def uniform(self, *shape: int) -> Tensor:
        """float32 (N, *shape), uniform over [0, 1)."""
        # 24 bits are what a float32 below one can hold without rounding up to one.
        return (self.bits(*shape) >> 29).to(torch.float32) * 2.0**-24

    def normal(self, *shape: int) -> Tensor:
        """float32 (N, *shape), standard normal (Box and Muller 1958)."""
        radius = torch.sqrt(-2.0 * torch.log1p(-self.uniform(*shape)))
        return radius * torch.cos(2.0 * torch.pi * self.uniform(*shape))

    def integers(self, high: Tensor | int, *shape: int) -> Tensor:
        """int64 (N, *shape), uniform over [0, high)."""
        return self.bits(*shape) % high


@contextmanager
def seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """Seed torch's global generators for layers that draw from them (dropout), then restore."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive(seed, *purpose))
        yield


def environment(device: str) -> dict[str, str | int]:
    """What a result depends on beside its recipe: another thread count sums in another order."""
    card: dict[str, str | int] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 1,
        "device": device,
    }
    if device.startswith("cuda"):
        card["device_name"] = torch.cuda.get_device_name(device)
    return card
