"""The prune stage cuts by the masks of any method, and counts what it was asked to keep."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_runs import SMALL, Runner, with_settings

from advprune.errors import BadData, Refused
from advprune.masking import prunable_weights
from advprune.masks import kept_count, load_masks
from advprune.method import Progress
from advprune.models.checkpoint import load
from advprune.stats import parameter_count
from advprune.types import Masks
from pipeline.stage import Artifact
from pipeline.store import checkpoints_in
from pipeline.watch import Watch


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """As far as the prune stage; nothing is trained, but for the search."""
    none = {"standard.epochs": 0, "adversarial.epochs": 0, "prune.epochs": 1}
    runner = Runner(with_settings(none, SMALL), tmp_path_factory.mktemp("runs"))
    for name in ("data", "standard", "adversarial"):
        runner.build(name)
    return runner


def prune_with(runner: Runner, root: Path, settings: Mapping[str, Any]) -> Runner:
    other = Runner(with_settings(settings, runner.recipe), root)
    other.made = dict(runner.made)
    return other


def masks_of(pruned: Artifact) -> Masks:
    return load_masks(pruned.file("masks.safetensors"))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("random", {"allocation": "global"}),
        ("gradient", {}),
        ("gap", {"score": "released"}),
        ("mad", {"delta": "full"}),
        ("harp", {"learn": "scores"}),
        ("rst", {}),
    ],
)
def test_weights_outside_the_masks_are_zero_and_the_count_is_exact(
    runner: Runner, tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    settings = {"method": method, "options": options, "sparsity": 0.85}
    pruned = prune_with(runner, tmp_path, settings).build("prune")
    masks, weights = masks_of(pruned), prunable_weights(load(pruned.check()))
    assert {key: mask.shape for key, mask in masks.items()} == {
        key: weight.shape for key, weight in weights.items()
    }
    for key, mask in masks.items():
        assert torch.equal(weights[key] != 0, mask)
    total = sum(mask.numel() for mask in masks.values())
    kept = kept_count(total, 0.85)
    assert sum(int(mask.sum()) for mask in masks.values()) == kept
    metrics = pruned.metrics
    assert (metrics["asked"], metrics["kept"], metrics["total"]) == (0.85, kept, total)
    assert metrics["sparsity"] == 1 - kept / total


@pytest.mark.parametrize("granularity", ["filter", "channel"])
@pytest.mark.parametrize("method", ["radmm", "mad", "gap", "gradient", "magnitude"])
def test_of_channels_the_share_of_channels_is_what_was_asked(
    runner: Runner, tmp_path: Path, method: str, granularity: str
) -> None:
    options = {"granularity": granularity} | ({"delta": "full"} if method == "mad" else {})
    settings = {"method": method, "options": options, "sparsity": 0.5}
    pruned = prune_with(runner, tmp_path, settings).build("prune")
    masks, weights = masks_of(pruned), prunable_weights(load(pruned.check()))
    for key, mask in masks.items():
        assert torch.equal(weights[key] != 0, mask), key
    # Of 448 channels that can go, in steps of eight.
    assert (pruned.metrics["channels_kept"], pruned.metrics["channels_total"]) == (224, 448)
    # The stream that begins in conv1 is made and read by several layers, all of the same mind.
    stream = masks["network.conv1.weight"].flatten(1).any(dim=1)
    assert torch.equal(masks["network.blocks.0.conv2.weight"].flatten(1).any(dim=1), stream)
    for reader in ("blocks.0.conv1", "blocks.1.conv1", "blocks.1.shortcut.conv"):
        columns = masks[f"network.{reader}.weight"].transpose(0, 1).flatten(1).any(dim=1)
        assert torch.equal(columns, stream)
    assert int(stream.sum()) % 8 == 0
    # What is told of weights is counted in weights.
    joined = torch.cat([mask.flatten() for mask in masks.values()])
    assert pruned.metrics["asked"] == 0.5
    assert pruned.metrics["kept"] == int(joined.sum())
    assert pruned.metrics["sparsity"] == pytest.approx(1 - float(joined.double().mean()))


@pytest.mark.parametrize("method", ["radmm", "mad", "gap", "gradient", "magnitude", "harp"])
def test_two_in_four_keeps_half_of_every_four(runner: Runner, tmp_path: Path, method: str) -> None:
    options = {"granularity": "2:4"} | ({"delta": "full"} if method == "mad" else {})
    settings = {"method": method, "options": options, "sparsity": 0.5}
    masks = masks_of(prune_with(runner, tmp_path, settings).build("prune"))
    assert masks.pop("network.conv1.weight").all()
    for mask in masks.values():
        fours = mask.unflatten(1, (-1, 4)).sum(dim=2)
        assert bool((fours == 2).all())


@pytest.mark.parametrize("least", [8, 16])
def test_too_few_channels_name_the_layer_and_leave_nothing(
    runner: Runner, tmp_path: Path, least: int
) -> None:
    options = {"granularity": "filter", "min_channels": least}
    settings = {"method": "magnitude", "options": options, "sparsity": 0.95}
    other = prune_with(runner, tmp_path, settings)
    with pytest.raises(BadData, match=rf"network\.\S+ would keep .* {least} is its least width"):
        other.build("prune")
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".safetensors"]


@pytest.mark.parametrize("method", ["magnitude", "gap", "hydra"])
@pytest.mark.parametrize("compression", [2.0, 5.5])
def test_a_compression_counts_all_parameters(
    runner: Runner, tmp_path: Path, method: str, compression: float
) -> None:
    settings = {"method": method, "compression": compression}
    pruned = prune_with(runner, tmp_path, settings).build("prune")
    total = parameter_count(load(pruned.check()))
    removed = sum(int((~mask).sum()) for mask in masks_of(pruned).values())
    assert total - removed == round(total / compression)
    assert pruned.metrics["asked"] == pytest.approx(pruned.metrics["sparsity"], abs=1e-12)
    # The recipe's own sparsity is not what counts then.
    assert runner.recipe.sparsity != pytest.approx(pruned.metrics["asked"], abs=1e-3)


def test_a_compression_out_of_reach_is_refused_with_the_largest(
    runner: Runner, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=r"--compression 1000: \d+ of \d+ parameters cannot"):
        prune_with(runner, tmp_path, {"method": "magnitude", "compression": 1e3}).build("prune")


class Halfway(Watch):
    """Ctrl-C in the middle of a survey, after some of it was saved."""

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        if progress.fraction > 0.6:
            raise KeyboardInterrupt
        super().step(progress, metrics)


def test_a_survey_that_was_interrupted_goes_on_and_ends_as_if_it_had_not_been(
    runner: Runner, tmp_path: Path
) -> None:
    settings = {"method": "gap", "prune.batch_size": 32}
    whole = prune_with(runner, tmp_path / "whole", settings).build("prune")
    other = prune_with(runner, tmp_path / "other", settings)
    with pytest.raises(KeyboardInterrupt):
        other.build("prune", Halfway)
    (left,) = (tmp_path / "other" / "store").iterdir()
    assert len(checkpoints_in(left)) == 2
    read: list[float] = []

    class Counted(Watch):
        def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
            read.append(progress.fraction)

    resumed = other.build("prune", Counted)
    assert 0.4 < min(read) <= 0.7
    assert read[-1] == 1.0
    assert resumed.digest == whole.digest
    # A survey has no epochs to tell of.
    assert (resumed.path / "metrics.jsonl").read_text() == ""
