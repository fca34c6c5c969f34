"""An engine built on this machine: the builder is told the GPU by the runtime that will use it."""

from pathlib import Path

from deploy.errors import DeployError
from deploy.runtimes.device_memory import open_device
from export.engine_card import BuildOptions
from export.to_tensorrt import Built, Skipped, build_engine


def build_here(
    onnx_path: Path, out_path: Path, shape: tuple[int, int, int], options: BuildOptions
) -> Built | Skipped:
    """Build an engine with its card, see `build_engine`; without a GPU say what is missing.

    Raises:
        Refused: as `build_engine`.
    """
    try:
        gpu = open_device().gpu
    except DeployError as error:
        return Skipped(str(error))
    return build_engine(onnx_path, out_path, shape, options, gpu)
