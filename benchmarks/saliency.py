"""How fast MAD scores a layer for a batch, beside explicit factors and a loop over rows.

    .venv/bin/python benchmarks/saliency.py [--quick]

Ours is `curvature.row_quadratic`; the reference builds A and G of the same inputs and gradients,
and a block of the Hessian for every row. 3x3 convolutions without bias, random values. Both must
agree to 1e-5 of the largest score.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from reference.saliency import layer_saliency
from side_by_side import Times, conditions, race, stopwatch, table
from torch import nn

from advprune.curvature import row_quadratic

TOLERANCE = 1e-5


class Shape(NamedTuple):
    """A convolution from and to `channels`, on square maps."""

    channels: int
    side: int
    batch: int

    def __str__(self) -> str:
        return f"{self.channels} channels, {self.side}x{self.side}, batch {self.batch}"


SHAPES = (Shape(16, 32, 64), Shape(64, 16, 64), Shape(128, 8, 64), Shape(256, 4, 32))


def compare(shape: Shape, rounds: int) -> Times:
    """Factors and rows, then ours.

    Raises:
        SystemExit: the scores differ by more than 1e-5 of the largest.
    """
    draw = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(shape.channels, shape.channels, 3, padding=1, bias=False)
    maps = (shape.batch, shape.channels, shape.side, shape.side)
    a, g = torch.rand(maps, generator=draw), torch.randn(maps, generator=draw)
    change = torch.randn(layer.weight.shape, generator=draw)

    def theirs() -> torch.Tensor:
        return layer_saliency(layer, a, g, change, None)

    def mine() -> torch.Tensor:
        return row_quadratic(layer, a, g, change, None)[0]

    error = (mine() - theirs()).abs().max() / theirs().abs().max()
    if not error <= TOLERANCE:
        raise SystemExit(f"saliency: {shape}: off by {error:.1e} of the largest score")
    return race({"factors and rows": stopwatch(theirs), "ours": stopwatch(mine)}, rounds)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny layer: only to try it out")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(words)
    for shape in (Shape(4, 6, 5),) if options.quick else SHAPES:
        found = table(compare(shape, options.rounds))
        sys.stdout.write(f"{shape}, equal to {TOLERANCE:g}\n\n{found}\n\n")
    sys.stdout.write(f"{conditions(options.rounds)}, fp32\n")


if __name__ == "__main__":
    main()
