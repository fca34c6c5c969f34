"""Linear classifiers, whose nearest boundary is known in closed form, in both norms."""

import torch
from torch import Tensor, nn

from advprune.repro import seeded
from advprune.types import Norm, per_image


def linear(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    with seeded(1, "linear", classes):
        features = shape[0] * shape[1] * shape[2]
        net = nn.Sequential(nn.Flatten(), nn.Linear(features, classes))
    # Confident, as trained networks are: else cross-entropy minds classes that are far away.
    net.get_parameter("1.weight").data *= 50
    return net


def needed_eps(net: nn.Sequential, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """Hoelder: moving an image by eps changes w.x by at most eps times the dual norm of w."""
    weight, logits = net.get_parameter("1.weight").detach(), net(x).detach()
    own = logits.gather(1, y[:, None])
    dual = (weight[y][:, None] - weight[None]).norm(p=1 if norm == "linf" else 2, dim=2)
    return ((own - logits) / dual).scatter(1, y[:, None], float("inf")).amin(dim=1)


def at_distance(net: nn.Sequential, x: Tensor, y: Tensor, eps: float, norm: Norm) -> Tensor:
    """Images of the labels y whose distance to the boundary is exactly eps: bisection on a line."""
    weight = net.get_parameter("1.weight").detach()
    inside = x.new_zeros(len(x))
    direction = (weight[y] - weight.mean(dim=0)).sign().reshape(x.shape)
    low, high = inside - 3, inside + 3
    for _ in range(60):
        middle = (low + high) / 2
        far = needed_eps(net, x + per_image(middle) * direction, y, norm) > eps
        low, high = torch.where(far, low, middle), torch.where(far, middle, high)
    return x + per_image(high) * direction
