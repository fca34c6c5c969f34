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
    `square_l2`. An image leaves the batch once it is misclassified.

    Args:
        model: anything that maps images to logits; it is asked `queries` times at most for an
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
    first, then = (square_l2.first, square_l2.then) if threat.norm == "l2" else (_first, _then)
    adversarial = x.detach().clone()
    with frozen(model), torch.no_grad():
        left = torch.nonzero(margin(model(x), y) <= 0.0)[:, 0]
        x, y, rng = adversarial[left], y[left], rng.subset(left)
        best, greatest = x, torch.full_like(x[:, 0, 0, 0], float("-inf"))
        for query in range(queries):
            if len(left) == 0:
                break
            if query == 0:
                candidate = first(x, threat, rng)
            else:
                candidate = then(best, x, threat, rng, _side(query, schedule, p_init, x))
            here = margin(model(candidate), y)
            better = here > greatest
            best = torch.where(per_image(better), candidate, best)
            greatest = torch.where(better, here, greatest)
            stays = greatest <= 0.0
            if not bool(stays.all()):
                adversarial[left[~stays]] = best[~stays]
                left, y, rng = left[stays], y[stays], rng.subset(stays)
                x, best, greatest = x[stays], best[stays], greatest[stays]
        adversarial[left] = best
    return adversarial


def _first(x: Images, threat: Threat, rng: ImageRandom) -> Images:
    """Vertical stripes."""
    channels, _, width = x.shape[1:]
    return _corner(x, rng.integers(2, channels, 1, width) == 1, threat)


def _then(best: Images, x: Images, threat: Threat, rng: ImageRandom, side: int) -> Images:
    """The best image so far with another patch; a patch that changes nothing is turned around.

    Asking again about the same image would waste the query: of single grey pixels, every second.
    """
    channels, height, width = x.shape[1:]
    patch, up = _patch(rng, (channels, height, width), side)
    candidate = torch.where(patch, _corner(x, up, threat), best)
    same = (candidate == best).flatten(1).all(dim=1)
    if bool(same.any()):
        turned = torch.where(patch, _corner(x, ~up, threat), best)
        candidate = torch.where(per_image(same), turned, candidate)
    return candidate


def _corner(x: Images, up: Tensor, threat: Threat) -> Images:
    return threat.project(torch.where(up, x + threat.eps, x - threat.eps), x)


def _side(query: int, schedule: int, p_init: float, x: Images) -> int:
    """Side of the patch in pixels: sqrt(p H W), rounded, within the image."""
    height, width = x.shape[2:]
    halvings = sum(query > share * schedule for share in _HALVINGS)
    side = round(math.sqrt(p_init / 2**halvings * height * width))
    return min(max(side, 1), height, width)


def _patch(rng: ImageRandom, shape: tuple[int, int, int], side: int) -> tuple[Tensor, Tensor]:
    """A patch for each image: bool (N, 1, H, W) where it lies, (N, C, 1, 1) whether it adds eps."""
    channels, height, width = shape
    drawn = rng.bits(2 + channels)
    highs = [height - side + 1, width - side + 1] + [2] * channels
    drawn = drawn % torch.tensor(highs, device=drawn.device)
    top, start = drawn[:, 0, None], drawn[:, 1, None]
    rows = torch.arange(height, device=drawn.device)
    columns = torch.arange(width, device=drawn.device)
    in_rows = (rows >= top) & (rows < top + side)
    in_columns = (columns >= start) & (columns < start + side)
    return in_rows[:, None, :, None] & in_columns[:, None, None, :], drawn[:, 2:, None, None] == 1
