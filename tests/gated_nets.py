"""Small networks in which channels are added, joined, flattened or passed on one by one."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from toy import generator, make_net

from advprune.models.blocks import BasicBlock, PreactBlock, conv3x3, head, stages
from advprune.repro import seeded

Shape = tuple[int, int, int]


def _residual() -> nn.Module:
    stem = OrderedDict(conv=conv3x3(3, 8), bn=nn.BatchNorm2d(8), relu=nn.ReLU())
    return nn.Sequential(
        OrderedDict(**stem, blocks=stages(BasicBlock, 8, (8, 12), 2), **head(12, 4))
    )


def _preact() -> nn.Module:
    blocks = stages(PreactBlock, 8, (8, 12), 2)
    end = OrderedDict(bn=nn.BatchNorm2d(12), relu=nn.ReLU(), **head(12, 4))
    return nn.Sequential(OrderedDict(conv=conv3x3(3, 8), blocks=blocks, **end))


class _Joined(nn.Module):
    """One layer reads two groups and, between them, channels that cannot go; another reads one."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 5, 3, padding=1)
        self.right = nn.Conv2d(3, 7, 1)
        self.grouped = nn.Conv2d(3, 6, 1, groups=3)
        self.both = nn.Conv2d(18, 6, 3, padding=1)
        self.beside = nn.Conv2d(5, 6, 1)
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x).relu(), self.right(x).relu()
        joined = torch.cat([right, self.grouped(x), left], dim=1)
        sum_ = self.both(joined) + self.beside(left)
        return self.linear(sum_.relu().mean(dim=(2, 3)))


def _flattened() -> nn.Module:
    """Each channel is four inputs of a linear layer."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 5, 3),
            relu=nn.ReLU(),
            pool=nn.MaxPool2d(3),
            flatten=nn.Flatten(),
            linear1=nn.Linear(5 * 2 * 2, 9),
            bn=nn.BatchNorm1d(9),
            relu1=nn.ReLU(),
            linear2=nn.Linear(9, 4),
        )
    )


def _depthwise() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 6, 3),
            bn=nn.BatchNorm2d(6),
            relu=nn.ReLU(),
            each=nn.Conv2d(6, 6, 3, groups=6),
            bn2=nn.BatchNorm2d(6),
            relu2=nn.ReLU(),
            point=nn.Conv2d(6, 10, 1),
            relu3=nn.ReLU(),
            **head(10, 4),
        )
    )


# How each is made, its images, and how many channels its groups have.
_MAKE: dict[str, tuple[Callable[[], nn.Module], Shape, list[int]]] = {
    "plain": (make_net, (1, 6, 6), [8, 16, 20]),
    "residual": (_residual, (3, 8, 8), [8, 8, 8, 12, 12, 12]),
    "preact": (_preact, (3, 8, 8), [8, 8, 8, 12, 12, 12]),
    "joined": (_Joined, (3, 8, 8), [5, 7, 6]),
    "flattened": (_flattened, (3, 8, 8), [5, 9]),
    "depthwise": (_depthwise, (3, 8, 8), [6, 10]),
}
NAMES = list(_MAKE)


def shape_of(name: str) -> Shape:
    return _MAKE[name][1]


def widths_of(name: str) -> list[int]:
    return _MAKE[name][2]


def gated_net(name: str) -> nn.Module:
    """In eval mode; no batch norm has statistics of zero and one."""
    with seeded(4, name):
        net = _MAKE[name][0]().eval()
    draw = generator(11)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(std=0.3, generator=draw)
            module.running_var.uniform_(0.5, 1.5, generator=draw)
            module.bias.data.normal_(std=0.3, generator=draw)
    return net


def images_for(name: str, count: int = 3) -> Tensor:
    return torch.rand(count, *shape_of(name), generator=generator(12))
