"""The network that a run begins with: random weights, or those of a file."""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from advprune.data import ImageSet
from advprune.errors import Incompatible
from advprune.masking import prunable_weights
from advprune.method import PruningMethod, Task
from advprune.models import Architecture, build, source_digest
from advprune.models.freezing import check_patterns, freeze, layers_to_freeze
from advprune.models.pretrained import (
    Pretrained,
    any_size,
    check_model,
    open_weights,
    start_from,
)
from advprune.stats import sparsity_for
from pipeline.recipe import Recipe
from pipeline.stage import check_if_recorded

# Of pixels in [0, 1] of the images of ImageNet, which published weights were trained under.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Beginning:
    """A network on the CPU, how it is built again, and what its weights began from, if a file."""

    net: nn.Module
    architecture: Architecture
    told: str = ""


def identity(recipe: Recipe) -> dict[str, Any]:
    """What the first weights depend on beside the images and the seed: contents, not paths.

    Raises:
        Refused, NotFound, Unavailable: there is no such model, file, or layer to freeze.
        BadData, Incompatible: the file is not one of weights, or of another network.
    """
    known: dict[str, Any] = {"model": recipe.model, "source": source_digest(recipe.model)}
    if recipe.normalize != "data":
        known["normalize"] = recipe.normalize
    if recipe.weights is not None:
        weights = _open(recipe.weights)
        check_model(weights, recipe.model)
        known["weights"] = weights.sha256
    if recipe.freeze:
        with suppress(Incompatible):  # made for other images alone: `begin` will tell
            check_patterns(any_size(recipe.model), recipe.freeze)
        known["freeze"] = list(recipe.freeze)
    return known


def begin(recipe: Recipe, images: ImageSet, sha256: str | None = None) -> Beginning:
    """A network for these images, that can be pruned as the recipe says.

    Args:
        sha256: of the file of weights, when the run was planned.

    Raises:
        NotFound, BadData, Refused, Incompatible: it cannot, better said now than after training.
    """
    weights = None if recipe.weights is None else _open(recipe.weights, sha256)
    mean, std = _normalisation(recipe, images, weights)
    architecture = Architecture(recipe.model, len(images.classes), images.shape, mean, std)
    net = build(architecture, seed=recipe.seed)
    told = "" if weights is None else start_from(net, weights)
    if recipe.freeze:
        frozen = layers_to_freeze(net, images.shape, recipe.freeze)
        freeze(net, frozen)
        architecture = replace(architecture, frozen=frozen)
    method = aimed_at(recipe, net)
    if method.lands:
        task = Task(recipe.robust_objective(recipe.prune), recipe.seed, images.shape)
        units = method.units(net, task)
        # Every rule shares one budget: where the simplest leaves a layer nothing, all of them do.
        units.counts("uniform", units.norms(prunable_weights(net)), method.sparsity)
    return Beginning(net, architecture, told)


def aimed_at(recipe: Recipe, net: nn.Module) -> PruningMethod:
    """The method, at the sparsity that gives the compression of `net` where one is asked for."""
    method = recipe.pruning_method()
    if recipe.compression is None:
        return method
    return method.model_copy(update={"sparsity": sparsity_for(net, recipe.compression)})


def _open(path: Path, sha256: str | None = None) -> Pretrained:
    check_if_recorded(path)
    return open_weights(path, sha256)


def _normalisation(recipe: Recipe, images: ImageSet, weights: Pretrained | None) -> _Statistics:
    """Mean and std of pixels in [0, 1]; weights mean nothing under others than their own."""
    channels = images.shape[0]
    asked = {
        "data": images.mean_std,
        "imagenet": lambda: _IMAGENET,
        "none": lambda: ((0.0,) * channels, (1.0,) * channels),
    }[recipe.normalize]()
    if len(asked[0]) != channels:
        raise Incompatible(
            f"--normalize {recipe.normalize}: has {len(asked[0])} colours, images of "
            f"{images.name} have {channels}; give --convert rgb, or --normalize data"
        )
    theirs = weights.normalisation if weights else None
    if weights is None or theirs is None:
        return asked
    if len(theirs[0]) != channels:
        raise Incompatible(
            f"{weights.path}: weights for images of {len(theirs[0])} channels, {images.name} has "
            f"{channels}; give other weights, or --convert rgb"
        )
    if recipe.normalize != "data" and not _close(theirs, asked):
        raise Incompatible(
            f"--normalize {recipe.normalize}: {weights.path} holds the statistics that its weights "
            f"were trained under, mean {_shown(theirs[0])} and std {_shown(theirs[1])}; leave "
            "--normalize out"
        )
    return theirs


def _close(one: _Statistics, other: _Statistics) -> bool:
    pairs = zip((*one[0], *one[1]), (*other[0], *other[1]), strict=True)
    return all(abs(a - b) < 1e-6 for a, b in pairs)


def _shown(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.4g}" for value in values)
