"""Promise: Square does not ask a model again what it has answered, and finds the same without."""

from copy import deepcopy

import pytest
import torch
from attack_nets import digit_net, digits, random_for
from torch import Tensor

from advprune.attacks import square as module
from advprune.attacks.square import square
from advprune.types import Threat


@pytest.mark.parametrize("schedule", [None, 10_000])
def test_nothing_is_asked_twice_between_two_changes(
    monkeypatch: pytest.MonkeyPatch, schedule: int | None
) -> None:
    # In double precision: in single, how many images are asked together decides near ties.
    net, split, threat = deepcopy(digit_net()).double(), digits(30), Threat(0.03)
    x, y = split.images / 255, split.labels
    asked: list[int] = []

    def model(images: Tensor) -> Tensor:
        asked.append(len(images))
        assert len(images) > 0
        return net(images.double()).float()

    with_notes = square(model, x, y, threat, random_for(x), queries=2000, schedule=schedule)
    few = sum(asked)
    asked.clear()
    monkeypatch.setattr(module, "_OFTEN", 10_000)  # so that nothing is noted
    without = square(model, x, y, threat, random_for(x), queries=2000, schedule=schedule)
    assert torch.equal(model(with_notes).argmax(dim=1) == y, model(without).argmax(dim=1) == y)
    assert (with_notes - without).abs().max() <= 1e-6
    assert 0 < few < 0.4 * sum(asked)


def test_a_patch_is_new_again_once_its_image_has_changed() -> None:
    tried = module._Tried(most=24)
    patches, ranges = torch.tensor([[0, 1, 1], [2, 3, 0]]), [3, 4, 2]
    assert tried.new(patches, ranges).tolist() == [True, True]
    assert tried.new(patches, ranges).tolist() == [False, False]
    assert tried.new(patches.flip(0), ranges).tolist() == [True, True]
    tried.forget(torch.tensor([False, True]))
    assert tried.new(patches, ranges).tolist() == [False, True]
    tried.keep(torch.tensor([False, True]))
    assert tried.new(patches[1:], ranges).tolist() == [False]
    # Another size begins anew, and of more than `most` nothing is noted.
    for ranges, again in (([2, 4, 2], False), ([5, 5, 2], True)):
        assert tried.new(patches[:1], ranges).tolist() == [True]
        assert tried.new(patches[:1], ranges).tolist() == [again]
