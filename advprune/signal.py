"""Whether anything of an image still reaches the logits of a pruned network."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advprune.errors import BadData
from advprune.masks import counts
from advprune.models import prunable
from advprune.types import Images, Masks

# Of the largest output: between the rounding of float64 and what any living weight lets through.
_SAME = 1e-9


def demand_signal(net: nn.Module, images: Images, masks: Masks) -> None:
    """Refuse a network that answers all images alike, which no training can mend.

    Each layer may have its weights, and yet none that reads what the layer before has left. Batch
    norm takes the statistics of the images, as in training: those of the dense network would hide
    what training brings back. The network is left as it is.

    Args:
        net: plain, cut by the masks.
        images: at least two that differ, float32 (N, C, H, W).
        masks: by the names of the weights, for the message.

    Raises:
        BadData: naming the first layer that no image gets through, and how much of it is kept.
    """
    copy = deepcopy(net).to(torch.float64).eval()
    for module in copy.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    passes: dict[str, bool] = {}

    def watcher(name: str):
        def watch(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            passes[name] = passes.get(name, False) or _differ(output)

        return watch

    for name, layer in prunable(copy).items():
        layer.register_forward_hook(watcher(name))
    with torch.no_grad():
        logits = copy(images.to(torch.float64))
    if not _differ(logits):
        name = next((name for name, alive in passes.items() if not alive), list(passes)[-1])
        kept, total = counts(masks)[name]
        raise BadData(
            f"prune: nothing of an image gets through {name}, which keeps {kept} of {total} "
            "weights, and around it there is no way; lower the sparsity or choose another "
            "allocation"
        )


def _differ(outputs: Tensor) -> bool:
    """Whether the first axis matters."""
    apart = (outputs - outputs[:1]).abs().amax()
    return bool(apart > _SAME * outputs.abs().amax())
