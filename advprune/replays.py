"""Batches that are taken several times in succession: adversarial training "for free".

One backward pass gives the gradient of the weights and that of the images (Shafahi et al. 2019,
"Adversarial Training for Free!", algorithm 1). So each replay of a batch is a step of the optimiser
and, by the same gradient, a step of the attack: of eps in the steepest direction, back into ball
and box. m replays cost m plain steps, where PGD of k steps costs k + 1 for each one.

Where this differs from the paper:

- A batch begins at a uniform point of each image's ball. The paper begins it where the batch before
  has ended, whose images have nothing to do with these; then what an image meets would depend on
  its place in the batch, and a checkpoint would have to hold it.
- The point stays inside the box, too; the paper's offset is held by the ball alone and cut to the
  box in front of the network, which stops its gradient there.

As in the paper the gradient is that of the network in training mode, in which batch norm sees the
batch; all other objectives attack it in eval mode.
"""

from collections.abc import Iterable, Iterator

from advprune.attacks.pgd import starting_point, step
from advprune.batches import Batch
from advprune.types import Images, Threat

_POINT = "replays.point"


def replayed(batches: Iterable[Batch], times: int) -> Iterator[Batch]:
    """Each batch so often in succession; it is the same object every time."""
    for batch in batches:
        for _ in range(times):
            yield batch


def moving(batch: Batch, threat: Threat) -> Images:
    """Where the images of this batch have got to; a backward pass through it moves them on.

    Any loss does that is a positive multiple of the cross-entropy plus what no image is part of:
    only the direction of its gradient counts.

    Returns:
        float32 (N, C, H, W), a leaf that requires a gradient.
    """
    if _POINT not in batch.carried:
        batch.carried[_POINT] = starting_point(batch.images, threat, batch.random, "uniform")
    point = batch.carried[_POINT]

    def move(gradient: Images) -> None:
        batch.carried[_POINT] = step(point, gradient, batch.images, threat, threat.eps)

    # Not the leaf itself in `move`: a circle of references would keep its memory for long.
    leaf = point.detach().requires_grad_(True)
    leaf.register_hook(move)
    return leaf
