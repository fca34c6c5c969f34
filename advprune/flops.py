"""Floating-point operations that are really carried out, by the type of the numbers."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Flops(TorchDispatchMode):
    """Counts, while it is entered, what convolutions and matrix products cost, backward too.

    By the formulas of `torch.utils.flop_counter.FlopCounterMode`, two for each multiply-add; but by
    type, because bf16 has another peak than fp32, and without hooks on modules.

    Attributes:
        by_type: operations by type of the first operand, as "float32".
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_type: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if formula := flop_registry.get(func.overloadpacket):
            dtype = next(arg.dtype for arg in args if isinstance(arg, Tensor))
            name = str(dtype).removeprefix("torch.")
            self.by_type[name] = self.by_type.get(name, 0) + formula(*args, **kwargs, out_val=out)
        return out
