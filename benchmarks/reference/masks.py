"""The mask of a layer by sorting all of its scores, as HYDRA and HARP do it."""

import torch
from torch import Tensor


def sorted_mask(scores: Tensor, keep: int) -> Tensor:
    """The mask of the `keep` largest scores; among equal scores the lowest index wins.

    Args:
        scores: any shape.
        keep: 0 <= keep <= scores.numel().

    Returns:
        bool, the shape of `scores`.
    """
    order = scores.flatten().sort(descending=True, stable=True).indices
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order[:keep]] = True
    return mask.reshape(scores.shape)
