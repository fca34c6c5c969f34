"""How fast the masks of all layers are selected, beside a full sort; equal bit by bit.

    .venv/bin/python benchmarks/masks.py [--quick]

Ours is `masking.refresh` of a network with learned scores, as after every optimiser step; the
reference sorts |S| of every layer. Scores are those of a fresh network.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from reference.masks import sorted_mask
from side_by_side import Times, conditions, race, stopwatch, table
from torch import nn

from advprune.masking import Scored, attach, maskings, refresh
from advprune.masks import kept_count
from advprune.models import Architecture, build

SHAPE, MEAN, STD = (3, 32, 32), (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
MODELS = ("resnet18", "vgg16_bn")
DENSITIES = (0.1, 0.01)


def scored(model: str, density: float) -> nn.Module:
    """The network with scores on all prunable weights, each layer at this density."""
    net = build(Architecture(model, 10, SHAPE, MEAN, STD))
    attach(net, lambda _, weight: Scored(weight, kept_count(weight.numel(), 1.0 - density)))
    return net


def compare(model: str, density: float, rounds: int) -> Times:
    """The full sort, then ours.

    Raises:
        SystemExit: a mask differs in a bit.
    """
    net = scored(model, density)
    layers = [masking for _, _, masking in maskings(net) if isinstance(masking, Scored)]

    def sort() -> list[torch.Tensor]:
        return [sorted_mask(layer.scores.detach().abs(), layer.keep) for layer in layers]

    times = race({"full sort": stopwatch(sort), "ours": stopwatch(lambda: refresh(net))}, rounds)
    if not all(torch.equal(a, b.mask) for a, b in zip(sort(), layers, strict=True)):
        raise SystemExit(f"masks: {model} at density {density:g} has another mask than the sort's")
    return times


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small network: only to try it out")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(words)
    for model in ("resnet20",) if options.quick else MODELS:
        for density in DENSITIES:
            found = table(compare(model, density, options.rounds))
            sys.stdout.write(f"{model}, density {density:g}, bit-equal\n\n{found}\n\n")
    sys.stdout.write(f"{conditions(options.rounds)}, fp32\n")


if __name__ == "__main__":
    main()
