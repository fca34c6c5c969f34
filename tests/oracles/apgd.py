"""APGD for one image: algorithm 1 of Croce and Hein 2020 from the list of all its iterates."""

from collections.abc import Iterable

from torch import Tensor

from advprune.types import Threat
from oracles.one_image import Classify, Loss, into, length, margin, slope, unit


def checkpoints(steps: int) -> list[int]:
    """After 22 % of the steps, each interval shorter by 3 %, none below 6 %, in whole steps."""
    found, interval = [0], max(int(0.22 * steps), 1)
    while found[-1] + interval <= steps:
        found.append(found[-1] + interval)
        interval = max(interval - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
    return found


def on_the_surface(x: Tensor, noise: Tensor, threat: Threat) -> Tensor:
    """Noise of any length as a point of the ball's surface, cut to the box."""
    unit = noise / (noise.abs().max() if threat.norm == "linf" else noise.norm())
    return (x + threat.eps * unit).clamp(threat.low, threat.high)


def attack(
    classify: Classify,
    x: Tensor,
    y: int,
    threat: Threat,
    runs: Iterable[tuple[Tensor, Loss]],
    steps: int,
    rho: float = 0.75,
    confidence: float = 0.0,
) -> Tensor:
    """The point of greatest margin over the runs, each of a start and a loss."""
    met = [(float(margin(classify(x), y)), x)]

    def done() -> bool:
        return max(value for value, _ in met) > confidence

    for start, loss in runs:
        if done():
            break
        _run(classify, x, y, threat, start, loss, steps, rho, met, done)
    best, found = met[0]
    for value, point in met[1:]:
        if value > best:
            best, found = value, point
    return found


def _run(classify, x, y, threat, start, loss, steps, rho, met, done) -> None:
    marks = checkpoints(steps)
    value, gradient, logits = slope(classify, start, loss)
    met.append((float(margin(logits, y)), start))
    # The authors' code compares the first step to zero.
    losses, tops = [0.0], {0: value}
    top = (value, start, gradient)
    size, halved, point, before = 2 * threat.eps, True, start, start
    for k in range(1, steps + 1):
        if done():
            return
        ahead = into(point + size * unit(gradient, threat.norm), x, threat)
        share = 1.0 if k == 1 else 0.75
        mixed = point + share * (ahead - point) + (1 - share) * (point - before)
        before, point = point, into(mixed, x, threat)
        value, gradient, logits = slope(classify, point, loss)
        met.append((float(margin(logits, y)), point))
        losses.append(value)
        if value > top[0]:
            top = (value, point, gradient)
        if k in marks:
            tops[k] = top[0]
            last = marks[marks.index(k) - 1]
            rises = sum(losses[i + 1] > losses[i] for i in range(last, k))
            few = rises <= rho * (k - last)
            halved = few or (not halved and tops[k] <= tops[last])
            if halved:
                size, point, gradient = size / 2, top[1], top[2]
    assert length(point - x, threat.norm) <= threat.eps * (1 + 1e-6)
