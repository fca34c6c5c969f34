"""The files of one small network, exported once for all tests: exporting takes seconds.

Named as a plugin by the tests that use it, so that the session has one fixture and not one a file.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from exported_net import SHAPE, Exported, make_net
from numpy.typing import NDArray
from torch import nn

from export import graph
from export.encodings import uint8_head, x86_form
from export.quantize import quantize
from export.to_onnx import to_onnx


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return _export(make_net(), tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The same network with its last layer scaled so that every class wins somewhere."""
    net = make_net().eval()
    last = net[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        logits = net(torch.from_numpy(_draw()[0]))
        last.bias -= logits.mean(0)
        scale = logits.std(0)
        last.weight /= scale[:, None]
        last.bias /= scale
    return _export(net, tmp_path_factory.mktemp("varied"))


def _draw() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Images as 8 bits hold them, and others to calibrate with."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, *SHAPE)).astype(np.uint8)
    # Not a multiple of the batch in which calibration runs.
    calibration = rng.random((150, *SHAPE), dtype=np.float32)
    return pixels.astype(np.float32) / np.float32(255), calibration


def _export(net: nn.Sequential, folder: Path) -> Exported:
    images, calibration = _draw()
    files = Exported(
        net=net,
        float_onnx=folder / "float.onnx",
        int8=folder / "int8.onnx",
        x86=folder / "x86.onnx",
        camera=folder / "camera.onnx",
        images=images,
        calibration=calibration,
    )
    to_onnx(files.net, SHAPE, files.float_onnx)
    quantize(files.float_onnx, files.calibration, files.int8)
    graph.save(x86_form(graph.load(files.int8)), files.x86)
    graph.save(uint8_head(graph.load(files.x86)), files.camera)
    return files
