"""Learned masks of channels: one for each group, shared by all the layers that read it.

A channel that nobody reads has no effect, whoever makes it, so masking the columns that read it is
the whole function of removing it. (The rows that make it follow when the search is over.)
"""

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.nn.utils import parametrize

from advprune.channels import ChannelGroup, Slot
from advprune.masking import Scored, maskings


class Readers(nn.Module):
    """The columns of one layer, masked by the groups of channels that it reads."""

    def __init__(self, parts: Iterable[tuple[str, Scored, Slot]]) -> None:
        super().__init__()
        self.names: list[str] = []
        self.groups = nn.ModuleList()
        for position, (name, scored, slot) in enumerate(parts):
            self.names.append(name)
            self.groups.append(scored)
            self.register_buffer(f"index_{position}", slot.index)

    def forward(self, weight: Tensor) -> Tensor:
        gains = weight.new_ones(weight.shape[1])
        for position, group in enumerate(self.groups):
            assert isinstance(group, Scored)
            index: Tensor = self.get_buffer(f"index_{position}")
            gain = group.gain()[:, None].expand(index.shape)
            gains = gains.index_put((index.flatten(),), gain.flatten())
        return weight * gains.view(1, -1, *([1] * (weight.dim() - 2)))


def attach_channels(
    net: nn.Module, groups: Iterable[ChannelGroup], make: Callable[[ChannelGroup], Scored]
) -> None:
    """Put `make(group)` before every weight that reads the group's channels."""
    parts: dict[str, list[tuple[str, Scored, Slot]]] = {}
    for group in groups:
        scored = make(group)
        for slot in group.readers:
            parts.setdefault(slot.layer, []).append((group.name, scored, slot))
    for layer, read in parts.items():
        module = net.get_submodule(layer)
        weight: Tensor = module.weight  # pyright: ignore[reportAssignmentType]
        parametrize.register_parametrization(module, "weight", Readers(read).to(weight.device))


def detach_channels(net: nn.Module) -> None:
    """Take the masks off again; the weights are as they were before."""
    for _, layer, masking in list(maskings(net)):
        if isinstance(masking, Readers):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


def learned(net: nn.Module) -> dict[str, Scored]:
    """Every learned mask, by the name of its weight or of its group of channels."""
    found: dict[str, Scored] = {}
    for name, _, masking in maskings(net):
        if isinstance(masking, Readers):
            pairs = zip(masking.names, masking.groups, strict=True)
            found |= {group: scored for group, scored in pairs if isinstance(scored, Scored)}
        elif isinstance(masking, Scored):
            found[name] = masking
    return found
