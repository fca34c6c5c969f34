"""torch: whether it can be imported, what it was built for, and whether that is what is here."""

import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.doctor.finding import Finding

# The driver that each CUDA needs at least, by its major number (CUDA release notes, table 3).
_DRIVERS = {11: 450, 12: 525, 13: 580}
_NVIDIA = Path("/proc/driver/nvidia/version")
_DEVICES = Path("/dev")
_HAS_CUDA = "pip install --force-reinstall torch torchvision"


def imported() -> Iterator[Finding]:
    """Nothing where it can be: its version is among the packages."""
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        yield Finding("torch import", "missing", f"fails ({reason})", "rm -r .venv && make setup")


def bfloat16() -> Iterator[Finding]:
    from pipeline.devices import resolve_precision

    if resolve_precision("auto", "cpu") == "bf16":
        yield Finding("bfloat16", "ok", "this processor multiplies it; layers train in it")
    else:
        yield Finding(
            "bfloat16",
            "absent",
            "this processor does not multiply it; layers train in float32, which takes longer",
            "nothing to do; processors with AVX512-BF16, AMX or ARM's BF16 have it",
        )


def cuda() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("cuda", "ok", f"{', '.join(names)}; CUDA {torch.version.cuda}")
    elif not has_gpu():
        yield Finding(
            "cuda",
            "absent",
            "no device",
            "an NVIDIA GPU and its driver speed training up; everything runs without",
        )
    elif torch.version.cuda is None:
        found = f"there is a GPU, but torch {torch.__version__} is built for processors alone"
        yield Finding("cuda", "warning", found, _HAS_CUDA)
    else:
        yield _unusable(torch.version.cuda, driver())


def _unusable(built_for: str, installed: str | None) -> Finding:
    """Why a GPU cannot be used by a torch that is built for CUDA."""
    needed = _DRIVERS.get(int(built_for.split(".")[0]), max(_DRIVERS.values()))
    if installed is None:
        found = "there is a GPU, but no driver is loaded"
        return Finding("cuda", "warning", found, f"apt-get install nvidia-driver-{needed}, restart")
    if int(installed.split(".")[0]) < needed:
        found = f"driver {installed} is too old for CUDA {built_for}, which torch is built for"
        remedy = f"apt-get install nvidia-driver-{needed}, restart; or an older torch"
        return Finding("cuda", "warning", found, remedy)
    return Finding(
        "cuda",
        "warning",
        f"driver {installed} and CUDA {built_for} fit, but torch finds no device",
        "nvidia-smi; unset CUDA_VISIBLE_DEVICES; give the container the GPU (--gpus all)",
    )


def has_gpu() -> bool:
    """Whether the system knows of an NVIDIA device, whatever torch can do with it."""
    return _NVIDIA.exists() or any(_DEVICES.glob("nvidia[0-9]*")) or (_DEVICES / "dxg").exists()


def driver() -> str | None:
    """The version of the loaded NVIDIA driver; None where there is none."""
    try:
        text = _NVIDIA.read_text()
    except OSError:
        return None
    found = re.search(r"\b(\d+(?:\.\d+)+)\b", text)
    return found[1] if found else None
