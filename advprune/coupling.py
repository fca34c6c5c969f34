"""Which channels stand or fall together.

A channel is made by rows of weights (output filters), passed on by batch norms, additions and
pooling, and read by columns of weights (slices of inputs). Where two layers' outputs are added,
channel i of one can only go together with channel i of the other. torch-pruning's dependency graph
finds these groups; what it says is tried out before it is believed, since it takes every operation
that it does not know for an element-wise one.

What cannot be cut has no group: colours of the input, the logits, channels that a layer norm or a
softmax mixes, layers with grouped convolutions that are not depthwise, what frozen layers make or
read.
"""

import copy
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from advprune.channels import ChannelGroup, Slot, remove
from advprune.errors import Incompatible
from advprune.models import logits_layer, weighted
from advprune.models.freezing import is_frozen
from advprune.surgery import depthwise, sizeable, widths

_TIED = "they are added to the logits"
_UNSEEN = "the trace does not see it: called as a function, or not at all"
_UNREAD = "no convolution and no linear layer reads them"
_UNEVEN = "they are flattened or reshaped unevenly on their way"
_FROZEN = "a frozen layer makes or reads them"
_MIXED = "a trial cut changed the logits: what follows mixes or reshapes them"
_TRIAL_GAP = 1e-4  # of the largest logit: the cut network adds in another order


def couple(net: nn.Module, shape: tuple[int, int, int]) -> list[ChannelGroup]:
    """The groups of channels that can be removed, in the order in which the network makes them.

    The network is left as it is; it must carry no parametrisations.

    Args:
        shape: (C, H, W) of one image.

    Raises:
        Incompatible: the graph cannot be traced, or nothing in it can be removed.
    """
    found = examine(net, shape).groups
    if not found:
        order = list(widths(net))
        fewer = ", or freeze fewer layers" if any(map(is_frozen, net.modules())) else ""
        raise Incompatible(
            f"channels: no layer of this network, from {order[0]} to {order[-1]}, has channels "
            f"that can be removed; use --granularity weight or 2:4{fewer}"
        )
    return found


class Examined(NamedTuple):
    """Groups of channels that can be removed; and layers whose channels cannot, with the reason."""

    groups: list[ChannelGroup]
    kept: dict[str, str]


def examine(net: nn.Module, shape: tuple[int, int, int]) -> Examined:
    """As `couple`, but nothing to remove is an answer as well."""
    twin = copy.deepcopy(net).requires_grad_(True).eval()
    found, kept = _traced(twin, shape)
    order = list(widths(net))
    found.sort(key=lambda group: order.index(group.makers[0].layer))
    if found and not _holds(net, found, shape):
        failed = [group for group in found if not _holds(net, [group], shape)]
        found = [group for group in found if group not in failed]
        if not _holds(net, found, shape):
            raise Incompatible(
                f"channels: {found[0].name} and {len(found) - 1} more can each be cut, but not "
                "together; use --granularity weight, and report this model"
            )
        kept |= {slot.layer: _MIXED for group in failed for slot in group.makers}
    return Examined(found, kept)


class _Position(NamedTuple):
    """Where channel `root_idx` of a group lies along an axis; named as torch-pruning reads it."""

    idx: int
    root_idx: int


_Found = dict[tuple[nn.Module, int], set[_Position]]  # (layer, axis) -> positions


def _traced(twin: nn.Module, shape: tuple[int, int, int]) -> Examined:
    import torch_pruning  # takes longer to import than a command without it may take

    names = {module: name for name, module in twin.named_modules()}
    head = twin.get_submodule(logits_layer(twin).removesuffix(".weight"))
    example = torch.zeros(2, *shape, device=next(twin.parameters()).device)
    groups: list[ChannelGroup] = []
    kept = {names[head]: "they are the logits"}
    met: set[nn.Module] = {head}
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it gave up on; the trial will tell
            graph = torch_pruning.DependencyGraph().build_dependency(twin, example, verbose=False)
            layers = [layer for layer in weighted(twin).values() if layer in graph.module2node]
            for layer in layers:
                if layer not in met:
                    found = _walk(graph, layer, _longest(twin))
                    made = {module for module, axis in found if axis == 0}
                    met |= made
                    group = _TIED if head in made else _group(found, layer, names)
                    if isinstance(group, ChannelGroup):
                        groups.append(group)
                    else:
                        kept |= {names[maker]: group for maker in layers if maker in made}
            kept |= {names[layer]: _UNSEEN for layer in weighted(twin).values() if layer not in met}
    # The tracer fails in its own way on each thing that it does not know.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise Incompatible(
            f"channels: the dependency graph of this network, from {next(iter(widths(twin)))} to "
            f"{logits_layer(twin)}, cannot be traced ({reason}); use --granularity weight or 2:4"
        ) from error
    return Examined(groups, kept)


def _walk(graph: Any, root: nn.Module, longest: int) -> _Found:
    """All that goes with the outputs of `root`.

    torch-pruning's own walk takes a reshape for a flatten wherever it meets one, and on a cycle of
    them runs out of memory.

    Raises:
        ValueError: a position lies outside of every layer.
    """
    prune = graph.get_pruner_of_module(root).prune_out_channels
    start = {_Position(i, i) for i in range(root.weight.shape[0])}  # pyright: ignore
    found: _Found = {}
    waiting = [(graph.module2node[root], prune, start)]
    while waiting:
        node, handler, positions = waiting.pop()
        axis = 0 if graph.is_out_channel_pruning_fn(handler) else 1
        place = (node.module, axis)
        fresh = {_Position(*position) for position in positions} - found.get(place, set())
        if not fresh:
            continue
        found[place] = found.get(place, set()) | fresh
        if max(position.idx for position in fresh) >= longest:
            raise ValueError(f"{node.name or node.module} reshapes channels")
        for edge in node.dependencies:
            if edge.is_triggered_by(handler):
                mapped: Any = sorted(fresh)
                for mapping in edge.index_mapping:
                    mapped = mapped if mapping is None else mapping(mapped)
                waiting.append((edge.target, edge.handler, mapped))
    return found


def _longest(net: nn.Module) -> int:
    return max(max(pair) for pair in widths(net).values())


def _group(found: _Found, root: nn.Module, names: Mapping[nn.Module, str]) -> ChannelGroup | str:
    """What was found in our terms; or why single channels cannot be cut."""
    slots: list[Slot] = []
    for (module, axis), positions in found.items():
        if is_frozen(module):
            return _FROZEN
        if isinstance(module, nn.Parameter):
            return "they meet a parameter that belongs to no layer"
        if module not in names:
            continue  # an operation without weights
        if not sizeable(module):
            if next(module.parameters(), None) is not None:
                kind = "grouped convolution" if isinstance(module, nn.Conv2d) else _kind(module)
                return f"they pass a {kind}, which cannot lose single ones"
            continue
        index = _index(positions, root.weight.shape[0])  # pyright: ignore
        if index is None:
            return _UNEVEN
        slots.append(Slot(names[module], axis, index))
    layers = {name: module for module, name in names.items()}
    weighted = [slot for slot in slots if isinstance(layers[slot.layer], nn.Conv2d | nn.Linear)]
    makers = tuple(slot for slot in weighted if slot.axis == 0)
    readers = tuple(
        slot for slot in weighted if slot.axis == 1 and not depthwise(layers[slot.layer])
    )
    norms = tuple(slot for slot in slots if slot not in weighted and slot.axis == 0)
    if not readers:
        return _UNREAD
    return ChannelGroup(f"{names[root]}.weight", len(makers[0].index), makers, readers, norms)


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _index(positions: Collection[_Position], width: int) -> Tensor | None:
    """(width, repeat) positions, or None where channels have different numbers of them."""
    found: list[list[int]] = [[] for _ in range(width)]
    for position in positions:
        found[position.root_idx].append(position.idx)
    if len({len(places) for places in found}) != 1 or not found[0]:
        return None
    return torch.tensor([sorted(places) for places in found])


@torch.no_grad()
def _holds(net: nn.Module, groups: Sequence[ChannelGroup], shape: tuple[int, int, int]) -> bool:
    """Whether every second channel of these groups can go.

    Once their columns are zero, nothing that makes them may show in the logits; and the network
    without them must give the same logits.
    """
    random = torch.Generator().manual_seed(0)
    device = next(net.parameters()).device
    images = torch.rand(2, *shape, generator=random).to(device)
    masked = copy.deepcopy(net).eval()
    small = copy.deepcopy(masked)
    kept = {g.name: torch.rand(g.width, generator=random).argsort() % 2 == 0 for g in groups}
    layers = dict(masked.named_modules())
    for group in groups:
        gone = ~kept[group.name]
        for slot in group.readers:
            layers[slot.layer].weight[:, slot.index[gone].flatten()] = 0.0  # pyright: ignore
    expected = masked(images)
    for group in groups:
        gone = ~kept[group.name]
        for slot in (*group.makers, *group.norms):
            weight: Tensor | None = layers[slot.layer].weight  # pyright: ignore
            if weight is not None:  # a norm may have none
                # Multiplied, so that zero columns stay zero in rows that are changed as well.
                weight[slot.index[gone].flatten()] *= -2.0
    if not torch.equal(masked(images), expected):
        return False
    remove(small, groups, kept)
    try:
        cut_logits = small(images)
    except RuntimeError:  # a shape that the network spells out, or channels paired by position
        return False
    gap = (cut_logits - expected).abs().max()
    return bool(gap <= _TRIAL_GAP * expected.abs().max().clamp_min(1.0))
