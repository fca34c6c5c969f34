"""The runtimes that exported models run on."""

import importlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from pipeline.doctor.finding import Finding
from pipeline.doctor.torch_build import has_gpu


def providers() -> Iterator[Finding]:
    name = "onnxruntime on"
    try:
        import onnxruntime

        found = onnxruntime.get_available_providers()
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        yield Finding(
            name, "missing", f"cannot be imported ({reason})", "rm -r .venv && make setup"
        )
        return
    if _both_are_installed():
        yield Finding(
            name,
            "warning",
            "onnxruntime and onnxruntime-gpu are both installed, and one hides the other",
            "pip uninstall onnxruntime onnxruntime-gpu, then pip install the one that you want",
        )
    elif has_gpu() and "CUDAExecutionProvider" not in found:
        yield Finding(
            name,
            "absent",
            f"{', '.join(found)}; there is a GPU that it cannot use",
            "pip uninstall onnxruntime && pip install onnxruntime-gpu",
        )
    else:
        yield Finding(name, "ok", ", ".join(found))


def tensorrt() -> Iterator[Finding]:
    """Installed is not enough: its libraries must load. Its version is among the extras."""
    try:
        version("tensorrt")
        importlib.import_module("tensorrt")
    except PackageNotFoundError:
        return
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        remedy = "pip install --force-reinstall tensorrt, on a machine with an NVIDIA GPU"
        yield Finding("tensorrt import", "warning", f"fails ({reason})", remedy)


def _both_are_installed() -> bool:
    try:
        return bool(version("onnxruntime") and version("onnxruntime-gpu"))
    except PackageNotFoundError:
        return False
