"""Options of the methods that can remove more than single weights."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from advprune.channel_units import ChannelUnits
from advprune.method import PruningMethod, Task
from advprune.semi_structured import TwoOfFour
from advprune.units import SingleWeights, Units

AS_ONE = "what is removed as one; filters and channels make the model smaller"


class StructuredMethod(PruningMethod):
    """A method whose `units` are chosen by an option."""

    # What a budget of channels counts: the channels themselves, or what they cost to compute.
    budget: ClassVar[Literal["channels", "macs"]] = "channels"

    granularity: Literal["weight", "filter", "channel", "2:4"] = Field(
        default="weight", description=AS_ONE
    )
    min_channels: int = Field(default=8, ge=1, description="least width of a group of channels")
    round_to: int = Field(default=8, ge=1, description="widths are multiples of this")

    @model_validator(mode="after")
    def _fits(self) -> "StructuredMethod":
        if self.granularity == "2:4" and self.sparsity != 0.5:
            raise ValueError(
                f"granularity 2:4 removes two weights of four, sparsity is {self.sparsity:g}; "
                "give --sparsity 0.5"
            )
        return self

    @property
    def shrinks(self) -> bool:
        """Whether whole channels go, so that the network can be made smaller."""
        return self.granularity in ("filter", "channel")

    def units(self, net: nn.Module, task: Task) -> Units:
        if self.granularity == "weight":
            return SingleWeights(net)
        if self.granularity == "2:4":
            return TwoOfFour(net)
        return self.channel_units(net, task)

    def channel_units(self, net: nn.Module, task: Task) -> ChannelUnits:
        judged = "filter" if self.granularity == "filter" else "channel"
        return ChannelUnits(net, task.shape, judged, self.min_channels, self.round_to, self.budget)
