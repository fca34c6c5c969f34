"""Which device a run computes on, with how many threads, and what of that its results keep."""

from importlib.metadata import version
from typing import Literal

import torch

from advprune import ranks
from advprune.errors import Refused, Unavailable
from advprune.precision import Precision

# What `torch.cpu.get_capabilities` calls them, on x86 and on ARM.
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


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


def resolve_precision(name: Literal["auto", "fp32", "bf16"], device: str) -> Precision:
    """`auto` is bf16 where the device multiplies bfloat16 numbers by itself, else fp32.

    Raises:
        Refused, Unavailable: as `resolve_device`; also for bf16 on a GPU that is too old for it.
    """
    on_gpu = resolve_device(device).startswith("cuda")
    if on_gpu:
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = any(torch.cpu.get_capabilities().get(name) for name in _BF16_INSTRUCTIONS)
    if name == "bf16" and on_gpu and not able:
        raise Unavailable("--precision bf16: this GPU has no bfloat16; use --precision fp32")
    return "bf16" if name == "bf16" or (name == "auto" and able) else "fp32"


def fix_arithmetic(threads: int | None) -> None:
    """What makes the same recipe give the same numbers: how many threads, and which products.

    Another count of threads adds in another order, so a recipe that names one gives the same bits
    everywhere; None leaves all cores to torch, or a part of them to each rank of this machine. On a
    GPU, convolutions would by default cut float32 to TF32, which has three decimal digits, and
    choose algorithms that add in any order.
    """
    if threads is None and ranks.local_count() > 1:
        threads = ranks.cores()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def platform(device: str) -> dict[str, str | int]:
    """What a result depends on beside settings and data; part of the key of every stage."""
    return {
        "device": resolve_device(device).partition(":")[0],
        "threads": torch.get_num_threads(),
        "torch": version("torch"),
        "onnxruntime": version("onnxruntime"),
    }
