"""The Square attack: random search over square patches, for models that only give scores."""

import math

import torch
from torch import Tensor

from advprune.attacks import Card, square_l2
from advprune.attacks.losses import margin
from advprune.errors import Refused
from advprune.frozen import frozen
from advprune.repro import ImageRandom
from advprune.types import Classifier, Images, Labels, Threat, per_image

CARD = Card(paper="Andriushchenko et al. 2020", needs="scores")

# After these shares of the schedule the patches halve in area (section 4.1: 10, 50, 200, ... of
# 10,000 queries).
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
# Queries for each patch of a size, from which on it pays to note which have been tried.
_OFTEN = 4


def square(
    model: Classifier,
    x: Images,
    y: Labels,
    threat: Threat,
    rng: ImageRandom,
    *,
    queries: int = 1000,
    p_init: float = 0.8,
    schedule: int | None = None,
) -> Images:
    """Keep a random patch wherever it raises the margin (algorithm 1).

    In the maximum norm a patch adds or subtracts eps (algorithm 2): every pixel sits at a corner of
    the ball, cut to the box, from the first vertical stripes on. For the Euclidean norm see
    `square_l2`. An image leaves the batch once it is misclassified, and what the model has answered
    it is not asked again.

    Args:
        model: any fixed function from images to logits; it is asked `queries` times at most for an
            image, and once before for the image itself.
        x: float32 (N, C, H, W) inside the box of the threat; y: int64 (N,).
        rng: the streams of exactly these images.
        queries: at least 1.
        p_init: share of the pixels under the first patches, in (0, 1].
        schedule: the queries that the schedule of patch sizes is stretched to; `queries` if None.

    Returns:
        float32 (N, C, H, W): the image itself where it is misclassified as it is.

    Raises:
        Refused: fewer queries or a schedule of fewer than 1, or p_init outside (0, 1].
    """
    if queries < 1:
        raise Refused(f"attack square: queries must be at least 1, got {queries}")
    if not 0.0 < p_init <= 1.0:
        raise Refused(f"attack square: p_init must lie in (0, 1], got {p_init:g}")
    schedule = queries if schedule is None else schedule
    if schedule < 1:
        raise Refused(f"attack square: schedule must be at least 1, got {schedule}")
    tried = _Tried(queries // _OFTEN)
    adversarial = x.detach().clone()
    with frozen(model), torch.no_grad():
        clean = margin(model(x), y)
        left = torch.nonzero(clean <= 0.0)[:, 0]
        x, y, rng = adversarial[left], y[left], rng.subset(left)
        best, greatest = x, torch.full_like(clean[left], float("-inf"))
        for query in range(queries):
            if len(left) == 0:
                break
            if query == 0:
                candidate, new = _first(x, threat, rng), torch.ones_like(y, dtype=torch.bool)
            else:
                side = _side(query, schedule, p_init, x)
                candidate, new = _then(best, x, threat, rng, side, tried)
            here = torch.full_like(greatest, float("-inf"))
            if bool(new.any()):
                here[new] = margin(model(candidate[new]), y[new])
            better = here > greatest
            tried.forget(better)
            best = torch.where(per_image(better), candidate, best)
            greatest = torch.where(better, here, greatest)
            stays = greatest <= 0.0
            if not bool(stays.all()):
                adversarial[left[~stays]] = best[~stays]
                left, y, rng = left[stays], y[stays], rng.subset(stays)
                x, best, greatest = x[stays], best[stays], greatest[stays]
                tried.keep(stays)
        adversarial[left] = best
    return adversarial


class _Tried:
    """Which patches have been tried on each image since it last changed: they would fail again.

    A small image has few patches, and each is drawn over and over. Nothing is noted of a size of
    which there are more than `most`.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._flags: Tensor | None = None

    def new(self, patches: Tensor, ranges: list[int]) -> Tensor:
        """bool (N,): where these patches have not been tried; from now on they have.

        Args:
            patches: int64 (N, len(ranges)), each column below its range.
        """
        count = math.prod(ranges)
        if count > self._most:
            self._flags = None
            return torch.ones_like(patches[:, 0], dtype=torch.bool)
        if self._flags is None or self._flags.shape[1] != count:
            self._flags = patches.new_zeros(len(patches), count, dtype=torch.bool)
        number = patches[:, :1]
        for column, size in enumerate(ranges[1:], start=1):
            number = number * size + patches[:, column, None]
        new = ~self._flags.gather(1, number)[:, 0]
        self._flags.scatter_(1, number, True)
        return new

    def forget(self, changed: Tensor) -> None:
        if self._flags is not None:
            self._flags[changed] = False

    def keep(self, stays: Tensor) -> None:
        if self._flags is not None:
            self._flags = self._flags[stays]


def _first(x: Images, threat: Threat, rng: ImageRandom) -> Images:
    if threat.norm == "l2":
        return square_l2.first(x, threat, rng)
    # Vertical stripes.
    channels, _, width = x.shape[1:]
    return _corner(x, rng.integers(2, channels, 1, width) == 1, threat)


def _then(
    best: Images, x: Images, threat: Threat, rng: ImageRandom, side: int, tried: _Tried
) -> tuple[Images, Tensor]:
    """The best image so far with another patch, and where it has not been tried: bool (N,).

    A patch that changes nothing is turned around: asking again about the same image would waste the
    query, and of single grey pixels every second.
    """
    if threat.norm == "l2":
        # Pairs of windows are so many that hardly one is drawn twice.
        return square_l2.then(best, x, threat, rng, side), torch.ones_like(x[:, 0, 0, 0]).bool()
    channels, height, width = x.shape[1:]
    ranges = [height - side + 1, width - side + 1] + [2] * channels
    drawn = rng.bits(len(ranges)) % torch.tensor(ranges, device=x.device)
    inside = _inside(drawn, side, x)
    candidate = torch.where(inside, _corner(x, drawn[:, 2:, None, None] == 1, threat), best)
    same = (candidate == best).flatten(1).all(dim=1)
    if bool(same.any()):
        drawn[same, 2:] = 1 - drawn[same, 2:]
        candidate = torch.where(inside, _corner(x, drawn[:, 2:, None, None] == 1, threat), best)
    return candidate, tried.new(drawn, ranges)


def _corner(x: Images, up: Tensor, threat: Threat) -> Images:
    return threat.project(torch.where(up, x + threat.eps, x - threat.eps), x)


def _side(query: int, schedule: int, p_init: float, x: Images) -> int:
    """Side of the patch in pixels: sqrt(p H W), rounded, within the image."""
    height, width = x.shape[2:]
    halvings = sum(query > share * schedule for share in _HALVINGS)
    side = round(math.sqrt(p_init / 2**halvings * height * width))
    return min(max(side, 1), height, width)


def _inside(patches: Tensor, side: int, x: Images) -> Tensor:
    """bool (N, 1, H, W): the pixels of each image's own patch, which begins at (row, column)."""
    top, start = patches[:, 0, None], patches[:, 1, None]
    rows = torch.arange(x.shape[2], device=x.device)
    columns = torch.arange(x.shape[3], device=x.device)
    in_rows = (rows >= top) & (rows < top + side)
    in_columns = (columns >= start) & (columns < start + side)
    return in_rows[:, None, :, None] & in_columns[:, None, None, :]
