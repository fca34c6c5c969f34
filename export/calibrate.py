"""How large every tensor of a float graph gets on calibration images."""

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime.quantization.calibrate import (
    CalibrationDataReader,
    CalibrationMethod,
    create_calibrator,
)

from advprune.errors import BadData, Incompatible
from advprune.spans import span

Method = Literal["minmax", "entropy", "percentile"]
FEWEST_IMAGES = 128
ENOUGH_IMAGES = 512
# In standard deviations of a pixel, between the means of calibration and of training images: a
# doubt, and another task. Means of 128 images of one task lie within 0.1 of each other.
_FAR, _ELSEWHERE = 0.5, 1.5
# Between the standard deviations of pixels: beyond it, one of the two is on another scale.
_SCALE = 4.0

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
_BATCH = 32


@span("calibration")
def magnitudes(
    model: ModelProto, calibration: NDArray[np.float32], method: Method, operators: set[str]
) -> dict[str, float]:
    """Tensor name -> the magnitude that the largest 8-bit code should stand for.

    Args:
        model: a float graph with one input.
        calibration: float32 (N, C, H, W) in [0, 1], at least 128 images.
        method: "minmax" takes the largest magnitude seen, "percentile" the 99.999th, "entropy" the
            one that loses least information (Kullback-Leibler divergence of the histograms).
        operators: operator types whose inputs and outputs are measured.

    Raises:
        BadData: too few images, or images that are not images (see `check_images`).
        Incompatible: the images do not fit the input of the graph, or the method is not known.
    """
    if method not in _METHODS:
        raise Incompatible(f"quantise: method {method!r} is not known; use one of {[*_METHODS]}")
    check_images(calibration)
    shape = model.graph.input[0].type.tensor_type.shape
    expected = tuple(dim.dim_value for dim in shape.dim[1:])
    if calibration.shape[1:] != expected:
        raise Incompatible(
            f"quantise: calibration images are {calibration.shape[1:]}, the graph takes {expected}"
        )
    # The calibrator leaves files beside the model it reads and prints its progress.
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        source = Path(folder, "float.onnx")
        onnx.save(model, source)
        calibrator = create_calibrator(
            source,
            sorted(operators),
            augmented_model_path=str(Path(folder, "augmented.onnx")),
            calibrate_method=_METHODS[method],
            extra_options={"symmetric": True},
        )
        for start in range(0, len(calibration), _BATCH):
            # One batch a call: the histogram methods stack all batches of a call, which fails when
            # the last one is shorter, and they would hold every activation of every image.
            batch = calibration[start : start + _BATCH]
            calibrator.collect_data(_OneBatch(model.graph.input[0].name, batch))
        ranges = calibrator.compute_data()
    return {
        name: float(np.max(np.abs([np.max(bound) for bound in data.range_value])))
        for name, data in ranges.items()
    }


def check_images(calibration: NDArray[np.float32]) -> None:
    """Refuse what cannot calibrate an engine for images.

    Raises:
        BadData: not float32 (N, C, H, W), fewer than 128 images, values that are not finite or lie
            outside [0, 1], or one value everywhere.
    """
    if calibration.dtype != np.float32 or calibration.ndim != 4:
        raise BadData(
            f"calibration: need float32 (N, C, H, W), got {calibration.dtype} {calibration.shape}"
        )
    if len(calibration) < FEWEST_IMAGES:
        raise BadData(
            f"calibration: {len(calibration)} images are too few; give at least {FEWEST_IMAGES}"
        )
    low, high = float(calibration.min()), float(calibration.max())
    if not np.isfinite([low, high]).all():
        raise BadData("calibration: the images hold values that are not finite; check the loader")
    if low < 0 or high > 1:
        raise BadData(
            f"calibration: values span [{low:g}, {high:g}] and must lie in [0, 1]; "
            "give images before normalisation, divided by 255"
        )
    if low == high:
        raise BadData(f"calibration: every pixel is {low:g}; give real images of the task")


def doubts(
    calibration: NDArray[np.float32], mean: Sequence[float], deviation: Sequence[float]
) -> list[str]:
    """What may make the ranges that these images give luck: one line for each doubt.

    Args:
        calibration: float32 (N, C, H, W) in [0, 1].
        mean, deviation: of each channel of the images that the network was trained on.

    Raises:
        BadData: beyond doubt not images like those, as after another division by 255.
    """
    found = []
    if len(calibration) < ENOUGH_IMAGES:
        found.append(f"{len(calibration)} calibration images, fewer than {ENOUGH_IMAGES}")
    here = calibration.mean(axis=(0, 2, 3), dtype=np.float64)
    apart = np.abs(here - mean) / deviation
    spread = calibration.std(axis=(0, 2, 3), dtype=np.float64) / deviation
    strange = (apart > _ELSEWHERE) | (spread > _SCALE) | (spread < 1 / _SCALE)
    if strange.any():
        channel = int(strange.argmax())
        raise BadData(
            f"calibration: channel {channel} has a mean of {here[channel]:.3f} and a deviation of "
            f"{spread[channel] * deviation[channel]:.3f}, in training images {mean[channel]:.3f} "
            f"and {deviation[channel]:.3f}; give images of the task, scaled as those"
        )
    if (apart > _FAR).any():
        channel = int(apart.argmax())
        found.append(
            f"calibration images have a mean of {here[channel]:.2f} in channel {channel}, training "
            f"images {mean[channel]:.2f}: are they of the same task?"
        )
    return found


class _OneBatch(CalibrationDataReader):
    def __init__(self, name: str, batch: NDArray[np.float32]) -> None:
        self._feeds: Iterator[dict[str, NDArray[np.float32]]] = iter([{name: batch}])

    def get_next(self) -> dict[str, NDArray[np.float32]]:
        return next(self._feeds, {})
