"""Which device a run computes on."""

import torch

from advprune.errors import Refused, Unavailable


def resolve_device(name: str) -> str:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        Refused: not the name of a device.
        Unavailable: a device that this machine lacks; never replaced by another silently.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise Refused(f"--device {name!r} is not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise Unavailable(
                f"--device {name}: this machine has {count} CUDA devices; use --device cpu "
                "(see `advprune doctor`)"
            )
    elif device.type != "cpu":
        raise Refused(f"--device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    return name
