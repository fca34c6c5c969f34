"""Steps of a recipe's training tried on this machine, before anything is trained."""

import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from advprune.batches import Batch
from advprune.data import ImageSet, as_float
from advprune.distillation import taught_by
from advprune.objectives import Objective
from advprune.repro import ImageRandom
from pipeline.beginning import begin
from pipeline.capacity import Cost, Traffic, Work, step_traffic, through
from pipeline.devices import resolve_device
from pipeline.recipe import Recipe
from pipeline.sections import Training
from pipeline.stages import quantize

PROBED = 64  # images of the step that estimates of time are measured on
_FEW = 16  # images of the step beside it, which says what a step costs whatever it holds


def trainings(recipe: Recipe) -> dict[str, tuple[Training, Objective]]:
    """How long each stage trains, and upon what; without those that train nothing.

    A survey is not among them: how much it costs, its file alone knows.
    """
    robust = recipe.robust_objective
    found = {
        "standard": (recipe.standard, recipe.natural_objective()),
        "adversarial": (recipe.adversarial, robust(recipe.adversarial)),
    }
    if recipe.pruning_method().searches:
        found["prune"] = (recipe.prune, robust(recipe.prune))
    found["finetune"] = (recipe.finetune, robust(recipe.finetune))
    if quantize.how_of(recipe) != "ptq":
        found["quantize"] = (recipe.quantize, robust(recipe.quantize))
    return found


class Probe:
    """The network that a recipe begins with, and the first of its images."""

    def __init__(self, recipe: Recipe, images: ImageSet) -> None:
        device = resolve_device(recipe.device)
        self._net = begin(recipe, images).net.to(device)
        self._images = images.train.first(PROBED).to(device)
        self._device = device
        self._tried: dict[tuple[Objective, tuple[int, ...]], list[float]] = {}

    @property
    def size(self) -> int:
        """How many images there are to try."""
        return len(self._images)

    def seconds(self, objective: Objective) -> float:
        """Of one step on all of them: its attack, its loss and the gradients."""
        return self._least(objective, (self.size,), 3)[0]

    def cost(self, objective: Objective) -> Cost:
        """Of a step by its images."""
        few = min(_FEW, self.size)
        soon, late = self._least(objective, (few, self.size), 6)
        return through((few, soon), (self.size, late))

    def _least(self, objective: Objective, counts: tuple[int, ...], rounds: int) -> list[float]:
        """The least seconds of steps on so many images, in turn; the first also warm up.

        Most stages share one objective, which is tried once.
        """
        key = objective, counts
        if key not in self._tried:
            steps = [self.step(objective, count) for count in counts]
            each = [[step() for step in steps] for _ in range(rounds)]
            self._tried[key] = [min(times) for times in zip(*each, strict=True)]
        return self._tried[key]

    def step(self, objective: Objective, count: int) -> Callable[[], float]:
        """What takes a step on so many images, and says in how many seconds."""
        batch = self._batch(count)
        ready = taught_by(objective, self._net).for_training(self._net, batch.images, PROBED)

        def step() -> float:
            started = time.perf_counter()
            ready(self._net, batch).value.backward()
            if self._device.startswith("cuda"):
                torch.cuda.synchronize()
            return time.perf_counter() - started

        return step

    def _batch(self, count: int) -> Batch:
        some = self._images.first(count)
        return Batch(as_float(some.images), some.labels, ImageRandom(0, some.indices))

    def traffic(self, objective: Objective, training: Training) -> Traffic:
        """What ranks would sum in a step: gradients and batch norms are counted in one."""
        norms = [module for module in self._net.modules() if isinstance(module, _BatchNorm)]
        asked: list[int] = []

        def note(norm: nn.Module, _: object) -> None:
            if norm.training:
                asked.append(int(norm.num_features))  # pyright: ignore[reportArgumentType]

        hooks = [norm.register_forward_pre_hook(note) for norm in norms]
        self._net.zero_grad(set_to_none=True)
        taught_by(objective, self._net)(self._net, self._batch(8)).value.backward()
        for hook in hooks:
            hook.remove()
        learned = [p for p in self._net.parameters() if p.grad is not None]
        tracked = [norm.num_features for norm in norms if norm.running_mean is not None]
        return step_traffic(
            sum(p.numel() for p in learned),
            asked * training.accumulate if training.sync_bn else (),
            () if training.sync_bn else tracked,
        )


def works(recipe: Recipe, images: ImageSet, count: int) -> Iterator[Work]:
    """The stages that train, each with a step that was tried here.

    Args:
        images: a sample will do, see `sample_images`.
        count: images to train on.
    """
    probe = Probe(recipe, images)
    for name, (training, objective) in trainings(recipe).items():
        yield Work(
            name,
            training.epochs,
            count,
            training.batch_size,
            probe.cost(objective),
            probe.traffic(objective, training),
            training.accumulate,
            replays=objective.times,
            beside=0 if images.extra is None else 1,
        )
