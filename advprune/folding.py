"""A network without its batch norms: each folded into the convolution before it.

What is folded is a copy that can be brought up to date, so that a network that goes on learning
pays for the tracing once.
"""

from copy import deepcopy

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from advprune.frozen import OfWeights, affine_of, frozen, same_modes
from advprune.types import Images, Logits

# What folding may cost by rounding: of the largest logit, of the length of all gradients.
_SAME, _SAME_SLOPE = 1e-4, 1e-3


class Affine(nn.Module):
    """Batch norm in eval mode that has no convolution of its own: x * scale + shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Buffer(torch.ones(width, 1, 1))
        self.shift = nn.Buffer(torch.zeros(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


class Folded(fx.GraphModule):
    """What `source` computes in eval mode, in a graph without batch norms, with its own weights.

    Parametrised weights are plain here, kernels are in channels-last order, nothing learns.

    Args:
        source: a network that can be traced; it is left as it was.

    Raises:
        Exception: whatever tracing raises, of which there is no list.
    """

    def __init__(self, source: nn.Module) -> None:
        copy = _plain_copy(source)
        graph = fx.Tracer().trace(copy)
        self._norm_of = _fold_away(graph, copy)
        # Layers that no part of the graph calls any more are dropped with the copy.
        super().__init__(copy, graph)
        self._alone = [name for name, module in self.named_modules() if type(module) is Affine]
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore
        self.follow(source)

    @torch.no_grad()
    def follow(self, source: nn.Module) -> None:
        """Take over the weights and statistics that `source` has now, in the types held here.

        Args:
            source: the network that was traced, or one of the same structure; left as it is.
        """
        with same_modes(source):
            source.eval()  # some parametrisations move in training mode whenever they are asked
            self._take_over(source)

    def _take_over(self, source: nn.Module) -> None:
        for name in self._alone:
            here = self.get_submodule(name)
            scale, shift = affine_of(source.get_submodule(name))
            here.scale.copy_(scale)  # pyright: ignore[reportCallIssue]
            here.shift.copy_(shift)  # pyright: ignore[reportCallIssue]
        for name, norm in self._norm_of.items():
            layer, here = source.get_submodule(name), self.get_submodule(name)
            scale, shift = affine_of(source.get_submodule(norm))
            here.weight.copy_(layer.weight * scale[..., None])  # pyright: ignore
            here.bias.copy_(_of_bias(layer, scale) + shift.flatten())  # pyright: ignore
        for prefix, module in self.named_modules():
            if prefix in self._norm_of or prefix in self._alone:
                continue
            held = {**module._parameters, **module._buffers}
            if not held:
                continue
            there = source.get_submodule(prefix)
            for name, value in held.items():
                # What the forward itself makes is a constant of the graph alone.
                if value is not None and hasattr(there, name):
                    value.copy_(getattr(there, name))


def folded(net: nn.Module, images: Images) -> nn.Module:
    """A copy of `net` for evaluation that answers the same sooner.

    In eval mode, without parameters that learn, batch norms folded. A network that cannot be
    traced, or that has other logits or other gradients once folded, is copied as it is: tracing
    forgets a backward of one's own.

    Args:
        net: left as it was.
        images: float32 (N, C, H, W), N at least 1, on which both are compared.
    """
    return fold(net, images) or deepcopy(net).eval().requires_grad_(False)


def fold(net: nn.Module, images: Images) -> Folded | None:
    """`net` folded, found to be the same on `images`; None where it cannot be, see `folded`."""
    # Hooks and modules that are asked for weights would be traced as they are at this moment.
    if any(isinstance(m, OfWeights) or _is_hooked(m) for m in net.modules()):
        return None
    try:
        copy = Folded(net)
        got = _probe(copy, images)
    # Any network may refuse to be traced, or views of what is now in channels-last order, each in
    # its own way; then it stays as it is.
    except Exception:
        return None
    with frozen(net):
        expected = _probe(net, images)
    if expected is None or got is None:
        return None
    near = (got[0] - expected[0]).abs().max() <= _SAME * expected[0].abs().max().clamp_min(1.0)
    alike = (got[1] - expected[1]).norm() <= _SAME_SLOPE * expected[1].norm()
    return copy if bool(near & alike) else None


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _plain_copy(net: nn.Module) -> nn.Module:
    """A copy with effective weights where `net` has parametrised ones.

    The copy leaves the class that the parametrisation made, which it shares with the original.
    """
    copy = deepcopy(net)
    for module in copy.modules():
        if parametrize.is_parametrized(module):
            names = list(module.parametrizations)  # pyright: ignore
            effective = {name: getattr(module, name).detach() for name in names}
            module.__class__ = type(module).__bases__[0]
            del module.parametrizations
            for name, value in effective.items():
                module.register_parameter(name, nn.Parameter(value))
    return copy.eval()


def _fold_away(graph: fx.Graph, net: nn.Module) -> dict[str, str]:
    """Take the batch norms out of the graph; convolution -> the batch norm that it takes in.

    The others become `Affine`.
    """
    modules = dict(net.named_modules())
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    norm_of: dict[str, str] = {}
    for node in list(graph.nodes):
        name = str(node.target)
        norm = modules.get(name) if node.op == "call_module" else None
        if type(norm) is not nn.BatchNorm2d or norm.running_var is None or calls.count(name) > 1:
            continue
        before = node.args[0]
        layer, target = modules.get(str(before.target)), str(before.target)
        if (
            before.op == "call_module"
            and type(layer) is nn.Conv2d
            and len(before.users) == 1
            and calls.count(target) == 1
        ):
            norm_of[target] = name
            if layer.bias is None:
                layer.bias = nn.Parameter(torch.zeros_like(norm.running_var))
            node.replace_all_uses_with(before)
            graph.erase_node(node)
        else:
            host, _, leaf = name.rpartition(".")
            setattr(net.get_submodule(host), leaf, Affine(norm.num_features).to(norm.running_var))
    return norm_of


def _of_bias(layer: nn.Module, scale: Tensor) -> Tensor | float:
    bias: Tensor | None = layer.bias  # pyright: ignore[reportAssignmentType]
    return 0.0 if bias is None else bias * scale.flatten()


def _probe(net: nn.Module, images: Images) -> tuple[Logits, Tensor] | None:
    """Logits, and the gradient of their squares; None for a network that has none."""
    with torch.enable_grad():
        x = images.detach().requires_grad_(True)
        logits = net(x)
        if not logits.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    return logits.detach(), gradient
