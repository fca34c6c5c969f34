"""HYDRA: from magnitude pruning, by learned scores, at layer counts that never change."""

from typing import Literal

import pytest
import torch
from toy import Memory, make_images, make_net, make_task, same

from advprune.allocate import allocate
from advprune.masking import current_masks, maskings, prunable_weights
from advprune.masks import keep_top
from advprune.method import Optimisation, Progress
from advprune.methods.hydra import Hydra
from advprune.methods.magnitude import Magnitude
from advprune.train import Schedule, fit

IMAGES = make_images()
TASK = make_task(steps=1)
every_allocation = pytest.mark.parametrize("allocation", ["uniform", "erk", "lamp"])


@every_allocation
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_without_a_step_hydra_is_magnitude_pruning(
    allocation: Literal["uniform", "erk", "lamp"], sparsity: float
) -> None:
    hydra = Hydra(sparsity=sparsity, allocation=allocation)
    net = make_net()
    trained = fit(net, IMAGES, TASK, Schedule(epochs=0), Memory(), hydra)
    magnitude = Magnitude(sparsity=sparsity, allocation=allocation)
    assert same(hydra.finish(net, trained.state, TASK), magnitude.finish(make_net(), {}, TASK))


@every_allocation
def test_the_search_moves_masks_within_layers_and_never_between_them(
    allocation: Literal["uniform", "erk", "lamp"],
) -> None:
    hydra = Hydra(sparsity=0.8, allocation=allocation)
    net = make_net()
    kept = allocate(allocation, prunable_weights(net), 0.8)
    seen = []

    class Watching(Memory):
        def step(self, progress: Progress, metrics) -> None:
            seen.append(current_masks(net))

    trained = fit(net, IMAGES, TASK, Schedule(epochs=3, batch_size=16), Watching(), hydra)
    final = hydra.finish(net, trained.state, TASK)
    for masks in [*seen, final]:
        assert {name: int(mask.sum()) for name, mask in masks.items()} == kept
    start = Magnitude(sparsity=0.8, allocation=allocation).finish(make_net(), {}, TASK)
    assert not same(final, start)
    # The final masks are those of the final scores.
    for name, _, masking in maskings(net):
        assert torch.equal(final[name], keep_top(masking.get_parameter("scores").abs(), kept[name]))


def test_the_scores_and_batch_norm_learn_and_nothing_else() -> None:
    net = make_net()
    hydra = Hydra(sparsity=0.8)
    hydra.start(net, TASK, Optimisation(0.1, 0.0, 9))
    (group,) = hydra.groups(net, Optimisation(0.1, 0.0, 9))
    mine = {id(p) for p in group["params"]}
    learning = {name for name, p in net.named_parameters() if id(p) in mine}
    norms = {f"network.bn{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    scores = {name for name in learning if name.endswith("parametrizations.weight.0.scores")}
    assert learning == norms | scores
    assert len(scores) == 4


def test_choosing_weights_alone_makes_a_random_network_classify() -> None:
    net, task = make_net(), make_task(name="natural")
    schedule = Schedule(epochs=25, batch_size=16, lr=0.5, validate_every=0)
    history = fit(net, IMAGES, task, schedule, Memory(), Hydra(sparsity=0.8)).history
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert history[-1]["val_clean"] > 0.9
