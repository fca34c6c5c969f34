"""survey(): one pass over the training images that scores weights and trains none."""

import math
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor, nn

from advprune import ranks
from advprune.batches import batches
from advprune.data import ImageSet, as_float
from advprune.frozen import same_modes
from advprune.method import Progress, PruningMethod, Task
from advprune.observer import Observer
from advprune.rank_sums import total_by_name
from advprune.repro import seeded
from advprune.spans import span
from advprune.train import Trained

PREFIX = "scores/"
_CHECKPOINTS = 10  # over the pass


def survey(
    net: nn.Module,
    images: ImageSet,
    task: Task,
    batch_size: int,
    observer: Observer,
    method: PruningMethod,
) -> Trained:
    """Sum the scores that `method` gives each weight over the batches of one epoch, in float64.

    The network is in eval mode and ends as it was.

    Args:
        images: on the device of the network; `train` is read.
        observer: given the sums after every tenth of the pass and when it asks for them, and asked
            for them at the start.

    Returns:
        The sums as "scores/<name of the weight>", which is the state that `finish` reads.
    """
    shown = as_float(images.train.first(8).images), len(images.train)
    task = replace(task, objective=task.objective.for_training(net, *shown))
    full = math.ceil(len(images.train) / batch_size)
    count = method.batches_needed(full)
    every = math.ceil(count / _CHECKPOINTS)
    done, sums = 0, dict[str, Tensor]()
    if (saved := observer.restore()) is not None:
        device = next(net.parameters()).device
        done = saved[0]
        sums = {name: value.to(device) for name, value in saved[1].items()}
    # Batches go round the ranks whole: what a method makes of one need not be a sum over images.
    first, stride = done + ranks.number(), ranks.count()
    mine = batches(
        images, task.seed, 0, full, augmented=method.augmented, first=first, stride=stride
    )
    with same_modes(net), observer.stepping(), closing(mine):
        net.eval()
        while done < count:
            index, scores = done + ranks.number(), dict[str, Tensor]()
            if index < count:
                with span("scores"), seeded(task.seed, "layers", index):
                    scores = method.assess(net, next(mine), task)
            for name, score in total_by_name(scores, images.val.images.device).items():
                key = PREFIX + name
                sums[key] = sums[key] + score if key in sums else score.to(torch.float64)
            before, done = done, min(done + stride, count)
            observer.step(Progress(done, count, count), {})
            if observer.due(done) or done // every > before // every:
                observer.save(done, dict(sums), [])
    return Trained(sums, [])
