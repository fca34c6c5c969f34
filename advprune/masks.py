"""Masks as data: which weights are kept, selected exactly, counted exactly, stored plainly."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from advprune.errors import BadData
from advprune.files import write
from advprune.selection import top_on_device, top_on_host
from advprune.types import Masks


def removed_count(size: int, sparsity: float) -> int:
    """floor(sparsity * size), unharmed by binary fractions: (1 - 0.9) * 10 is 1, not 0.99..."""
    return math.floor(sparsity * size + 1e-9 * max(1.0, size * 1e-6))


def kept_count(size: int, sparsity: float) -> int:
    """How many of `size` weights stay at this sparsity."""
    return size - removed_count(size, sparsity)


def keep_top(scores: Tensor, keep: int) -> Tensor:
    """The mask of the `keep` largest scores; among equal scores the lowest index wins.

    The result equals a full stable sort, without sorting; see `selection`.

    Args:
        scores: any shape, float, finite.
        keep: 0 <= keep <= scores.numel().

    Returns:
        bool, the shape of `scores`, exactly `keep` of it True.

    Raises:
        BadData: a score is not finite. Only on the CPU: on a GPU the question would stop the
            training at every layer, and a score that is not finite makes a loss that is not.
    """
    flat = scores.detach().flatten()
    size = flat.numel()
    if not 0 <= keep <= size:
        raise ValueError(f"keep_top: keep must lie in [0, {size}], got {keep}")
    if flat.device.type == "cpu" and not np.isfinite(flat.numpy()).all():
        raise BadData("masks: a score is not finite; training diverged: lower the learning rate")
    if keep == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if flat.device.type == "cpu":
        return torch.from_numpy(top_on_host(flat.numpy(), keep)).reshape(scores.shape)
    return top_on_device(flat, keep).reshape(scores.shape)


def keep_best(scores: Mapping[str, Tensor], kept: Mapping[str, int]) -> Masks:
    """The masks of the `kept[name]` largest scores of each layer, on the CPU."""
    return {name: keep_top(score, kept[name]).cpu() for name, score in scores.items()}


def counts(masks: Masks) -> dict[str, tuple[int, int]]:
    """(kept, total) of every mask."""
    return {name: (int(mask.sum()), mask.numel()) for name, mask in masks.items()}


def sparsity_of(masks: Masks) -> float:
    """Share of the weights that the masks remove, over all layers together."""
    pairs = counts(masks).values()
    return 1.0 - sum(kept for kept, _ in pairs) / sum(total for _, total in pairs)


def save_masks(masks: Masks, path: Path) -> None:
    """Raises StorageFailed or CannotCreate where the file cannot be written."""
    write(path, save({name: mask.cpu().contiguous() for name, mask in masks.items()}))


def load_masks(path: Path) -> Masks:
    """Raises BadData where the file cannot be read, is empty, or holds what is no bool mask."""
    try:
        masks = load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise BadData(f"{path}: masks cannot be read ({error}); run the stage again") from error
    if not masks:
        raise BadData(f"{path}: holds no masks; run the stage again")
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise BadData(f"{path}: mask {name!r} has dtype {mask.dtype}, expected bool")
        # A file may hold any byte, and torch counts what it is, not whether it is true.
        if not mask.numel() or mask.view(torch.uint8).max() > 1:
            raise BadData(f"{path}: mask {name!r} must be of zeros and ones; run the stage again")
    return masks
