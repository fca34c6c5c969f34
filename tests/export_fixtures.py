"""The files of one small network, exported once for all tests: exporting takes seconds.

Named as a plugin by the tests that use it, so that the session has one fixture and not one a file.
"""

import numpy as np
import pytest
from exported_net import SHAPE, Exported, make_net

from export import graph
from export.encodings import uint8_head, x86_form
from export.quantize import quantize
from export.to_onnx import to_onnx


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, *SHAPE)).astype(np.uint8)
    files = Exported(
        net=make_net(),
        float_onnx=folder / "float.onnx",
        int8=folder / "int8.onnx",
        x86=folder / "x86.onnx",
        camera=folder / "camera.onnx",
        images=pixels.astype(np.float32) / np.float32(255),
        # Not a multiple of the batch in which calibration runs.
        calibration=rng.random((150, *SHAPE), dtype=np.float32),
    )
    to_onnx(files.net, SHAPE, files.float_onnx)
    quantize(files.float_onnx, files.calibration, files.int8)
    graph.save(x86_form(graph.load(files.int8)), files.x86)
    graph.save(uint8_head(graph.load(files.x86)), files.camera)
    return files
