"""Flying Bird: when it rewires, and what it drops, written out."""

import math


def moments(steps: int, early: int, late: int, until: float) -> list[int]:
    """The steps after which a network is rewired."""
    found = []
    for step in range(1, steps):
        period = early if step <= steps / 2 else late
        if step % period == 0 and step <= until * steps:
            found.append(step)
    return found


def share(step: int, steps: int) -> float:
    """What torch's CosineAnnealingLR makes of 0.5 with eta_min 0.005."""
    return 0.005 + (0.5 - 0.005) * (1 + math.cos(math.pi * step / steps)) / 2
