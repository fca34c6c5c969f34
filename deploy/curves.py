"""How far each image is from a mistake of an engine, and the accuracy that is left at every eps.

A search for the nearest adversarial image runs on a twin. What counts is where the engine errs, so
the engine itself is asked along the line that the search found, and about every other candidate.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from advprune.attacks.nearest import Nearest
from advprune.evaluate import predict
from advprune.types import Images, Threat, per_image
from deploy.replay import Targets

# A nearest image lies on its twin's boundary; the engine may err a little farther on.
_FARTHER = (1.0, 1.001, 1.01, 1.05, 1.2)
_POINTS = 61
_HALVINGS = 6
_MISS = 0.05  # the band holds with a chance of 95 %


def distances(
    targets: Targets,
    candidates: Mapping[str, Images],
    lines: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """The least distance at which some image was met that an engine gets wrong.

    Args:
        candidates: images within the threat, by attack.
        lines: by attack and engine, what `along` found.

    Returns:
        By engine, float64 (N,) in the norm of the threat: 0 where the image itself is wrong,
        infinite where nothing was met.
    """
    found = {}
    for engine in targets.engines:
        right = targets.survivors(targets.clean)[engine]
        least, end = torch.where(right, math.inf, 0.0).double(), targets.x
        for images in candidates.values():
            inside = _wrong_at(targets, engine, images, targets.threat)
            # The last binary digit must not put an image outside the ball that it was found in.
            inside = torch.where(inside.isfinite(), inside.clamp_max(targets.threat.eps), inside)
            end = torch.where(per_image(inside < least), images, end)
            least = torch.minimum(least, inside)
        least = torch.minimum(least, _bisected(targets, engine, end))
        for line in lines.values():
            least = torch.minimum(least, line[engine])
        found[engine] = least
    return found


def _bisected(targets: Targets, engine: str, end: Images) -> Tensor:
    """The nearest point met on the way from each image to one that the engine gets wrong.

    Attacks on a ball end on its surface; without this the curve would fall at its eps at once.
    """
    offset, everywhere = end - targets.x, targets.everywhere
    low = torch.zeros_like(offset[:, :1, :1, :1])
    high = torch.ones_like(low)
    least = torch.full((len(offset),), math.inf, dtype=torch.float64, device=offset.device)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        at = _wrong_at(targets, engine, targets.x + middle * offset, everywhere)
        least = torch.minimum(least, at)
        wrong = per_image(at.isfinite())
        low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
    return least


def along(targets: Targets, engine: str, end: Nearest) -> Tensor:
    """The first point at which the engine errs on the line to the end of a search, float64 (N,)."""
    offset = end.images - targets.x
    everywhere = targets.everywhere
    least = torch.full((len(offset),), math.inf, dtype=torch.float64, device=offset.device)
    for factor in _FARTHER:
        images = everywhere.project(targets.x + factor * offset, targets.x)
        least = torch.minimum(least, _wrong_at(targets, engine, images, everywhere))
    return torch.where(end.distance.isfinite(), least, math.inf)


def security_curve(distances: Mapping[str, Tensor], threat: Threat) -> dict[str, Any]:
    """Robust accuracy against eps, with a band.

    The band is simultaneous (Dvoretzky, Kiefer and Wolfowitz 1956, with the constant of Massart
    1990): with a chance of 95 % the whole curve of the population lies inside it.

    Args:
        distances: by engine, of `distances`.

    Returns:
        Plain values: "norm"; "eps", from 0 to twice the threat's; and by engine "accuracy", "low"
        and "high" at each eps, and "distances" by image, None where nothing was met.
    """
    grid = torch.linspace(0.0, 2.0, _POINTS, dtype=torch.float64) * threat.eps
    # Exactly the threat's own, where the curve must meet the verdicts.
    grid[_POINTS // 2] = threat.eps
    engines = {}
    for name, found in distances.items():
        half = math.sqrt(math.log(2 / _MISS) / (2 * len(found)))
        accuracy = (found.cpu()[None] > grid[:, None]).double().mean(dim=1)
        engines[name] = {
            "accuracy": accuracy.tolist(),
            "low": (accuracy - half).clamp_min(0.0).tolist(),
            "high": (accuracy + half).clamp_max(1.0).tolist(),
            "distances": [d if math.isfinite(d) else None for d in found.tolist()],
        }
    return {"norm": threat.norm, "eps": grid.tolist(), "engines": engines}


def _wrong_at(targets: Targets, engine: str, images: Images, threat: Threat) -> Tensor:
    """The distance of each image where the engine gets it wrong, else infinity; float64 (N,)."""
    delivered = targets.deliver(engine, images, threat)
    logits = predict(targets.models[engine], delivered, targets.batch_size)
    wrong = ~targets.survivors({engine: logits})[engine]
    return torch.where(wrong, targets.threat.length((delivered - targets.x).double()), math.inf)
