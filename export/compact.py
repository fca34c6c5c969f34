"""A masked network made physically smaller: channels that nobody reads are cut out.

A channel is dead where every weight that reads it is zero: then it has no effect, whatever makes
it, so that the smaller network computes the same function. Zeros scattered in weights stay.
"""

import copy
from dataclasses import dataclass

from torch import Tensor, nn

from advprune.channels import read, remove
from advprune.coupling import couple
from advprune.errors import BadData, Incompatible
from advprune.evaluate import predict
from advprune.models import prunable
from advprune.stats import macs, parameter_count
from advprune.surgery import Widths, widths

SAME_LOGITS = 1e-5  # of the largest logit: fewer channels are added in another order


@dataclass(frozen=True)
class Compact:
    """A smaller network and what became of the larger one.

    Attributes:
        net: the smaller network, plain; in the mode of the larger.
        widths: (outputs, inputs) of the layers that changed, for its `Architecture`.
        groups: (name, channels before, channels after) of every group of channels.
        parameters, macs: (before, after); MACs of one image.
    """

    net: nn.Module
    widths: Widths
    groups: tuple[tuple[str, int, int], ...]
    parameters: tuple[int, int]
    macs: tuple[int, int]


def compact(net: nn.Module, shape: tuple[int, int, int]) -> Compact:
    """Cut the dead channels out of a copy of `net`.

    Args:
        net: plain, its masked weights zero.
        shape: (C, H, W) of one image.

    Raises:
        Incompatible: the network cannot be traced, or has no removable channels.
        BadData: a layer would be left without channels.
    """
    groups = couple(net, shape)
    weights = {name: layer.weight for name, layer in prunable(net).items()}
    living = {group.name: read(group, weights) for group in groups}
    for name, alive in living.items():
        if not alive.any():
            raise BadData(
                f"compact: none of the {len(alive)} channels of {name} is read by anyone; "
                "lower the sparsity"
            )
    small = copy.deepcopy(net)
    remove(small, groups, living)
    before, after = widths(net), widths(small)
    return Compact(
        small,
        {name: size for name, size in after.items() if size != before[name]},
        tuple((group.name, group.width, int(living[group.name].sum())) for group in groups),
        (parameter_count(net), parameter_count(small)),
        (macs(net, shape), macs(small, shape)),
    )


def check_same(masked: nn.Module, small: nn.Module, images: Tensor) -> float:
    """The largest gap between the logits of both networks, in eval mode.

    Args:
        images: uint8 or float (N, C, H, W).

    Raises:
        Incompatible: a class or a logit differs.
    """
    expected, got = predict(masked, images), predict(small, images)
    gap = float((expected - got).abs().max())
    changed = int((expected.argmax(dim=1) != got.argmax(dim=1)).sum())
    if changed or gap > SAME_LOGITS * max(1.0, float(expected.abs().max())):
        raise Incompatible(
            f"compact: without its dead channels the network gives {changed} of {len(images)} "
            f"images another class, logits differ by {gap:.2g}; use --granularity weight, and "
            "report this model"
        )
    return gap
