"""Promise: an engine runs as any other edge model, and one built for elsewhere is never opened.

The GPU is host memory behind the interface of cuda-python.
"""

import gc
import hashlib
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_cuda import HostCuda
from numpy.typing import NDArray
from tensorrt_runtime import (
    CLASSES,
    HERE,
    LARGEST,
    SHAPE,
    DataType,
    TensorRT,
    logits_of,
    make_images,
    write_engine,
)

from deploy.errors import DeployError
from deploy.runtime import EdgeModel
from deploy.runtimes.tensorrt import TensorRtModel

INSTALL = r"pip install 'tensorrt>=10\.3' cuda-python"


def refusal(code: int, match: str):
    return pytest.raises(DeployError, match=match, check=lambda error: error.exit_code == code)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    fake = HostCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    return fake


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch, cuda: HostCuda) -> TensorRT:
    fake = TensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


def test_engine_says_what_it_is(tensorrt: TensorRT, tmp_path: Path):
    model: EdgeModel = TensorRtModel(write_engine(tmp_path))
    info = model.info
    assert (info.runtime, info.precision, info.device) == ("tensorrt", "int8", "cuda:0 Test GPU")
    assert info.providers == ("TensorRT 11.4.0.106",)
    assert info.sha256 == hashlib.sha256(b"native code").hexdigest()
    assert (info.input, info.shape, info.classes) == ("float32 NCHW", SHAPE, CLASSES)
    assert tensorrt.opened == [(b"native code", False)]


@pytest.mark.parametrize("count", [1, LARGEST, LARGEST + 1, 3 * LARGEST, 20])
def test_any_number_of_images_in_batches_that_the_engine_takes(
    tensorrt: TensorRT, cuda: HostCuda, tmp_path: Path, count: int
):
    images = make_images(count)
    model = TensorRtModel(write_engine(tmp_path))
    logits = model.predict(images)
    np.testing.assert_array_equal(logits, logits_of(images))
    assert logits.dtype == np.float32
    assert sum(tensorrt.batches) == count and max(tensorrt.batches) <= LARGEST
    assert len(tensorrt.batches) == -(-count // LARGEST) == cuda.waited
    assert tensorrt.streams == cuda.streams and 0 not in cuda.streams


def test_images_that_lie_otherwise_in_memory(tensorrt: TensorRT, tmp_path: Path):
    images = np.asfortranarray(make_images(5))
    logits = TensorRtModel(write_engine(tmp_path)).predict(images[::-1])
    np.testing.assert_array_equal(logits, logits_of(np.ascontiguousarray(images[::-1])))


def test_half_precision_at_both_ends(tensorrt: TensorRT, tmp_path: Path):
    tensorrt.types = {"images": DataType.HALF, "logits": DataType.HALF}
    half = {"type": "float16"}
    model = TensorRtModel(
        write_engine(
            tmp_path,
            input={"name": "images", "shape": [-1, *SHAPE], **half},
            output={"name": "logits", "shape": [-1, CLASSES], **half},
        )
    )
    images = make_images(3)
    logits = model.predict(images)
    assert logits.dtype == np.float32 and model.info.input == "float16 NCHW"
    np.testing.assert_array_equal(logits, logits_of(images.astype(np.float16)))


def test_camera_engine_sees_pixels(tensorrt: TensorRT, tmp_path: Path):
    frame = (-1, *SHAPE[1:], SHAPE[0])
    tensorrt.types["images"], tensorrt.shapes["images"] = DataType.UINT8, frame
    entry = {"name": "images", "shape": frame, "type": "uint8"}
    model = TensorRtModel(write_engine(tmp_path, input=entry))
    images = make_images(3)
    pixels = np.rint(images * np.float32(255)).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(model.predict(images), logits_of(pixels))
    assert (model.info.input, model.info.shape) == ("uint8 NHWC", SHAPE)


@pytest.mark.parametrize(
    ("changes", "code", "match"),
    [
        ({"tensorrt": "11.4.1"}, 78, r"built for TensorRT 11\.4\.1, here is 11\.4\.0\.106"),
        ({"tensorrt": "10.3.0"}, 78, r"built for TensorRT 10\.3\.0, here is 11\.4\.0\.106"),
        ({"platform": "linux/riscv64"}, 78, rf"built on linux/riscv64, this is {HERE}"),
        (
            {"gpu": "Orin Nano", "compute_capability": "8.6"},
            78,
            r"Orin Nano for compute capability 8\.6, here is Test GPU with 8\.7",
        ),
        ({"tensorrt": "11.5.0", "version_compatible": True}, 78, r"11\.5\.0 or later, here is"),
        ({"tensorrt": "10.16.1", "version_compatible": True}, 78, r"10\.16\.1 or later, here is"),
        ({"sha256": "0" * 64}, 65, "its card is of 000000000000"),
        ({"schema": 1}, 65, "not an engine card .*schema 1"),
        ({"sha256": None}, 65, "not an engine card .*None is no str"),
        ({"tensorrt": "eleven"}, 65, "not an engine card"),
        ({"version_compatible": 1}, 65, "not an engine card .*1 is no bool"),
        ({"batch": {"max": 0}}, 65, "not an engine card .*batches of 0"),
        ({"batch": {}}, 65, "not an engine card"),
        ({"input": {"name": "images", "shape": [-1, 3], "type": "float32"}}, 65, "takes float32"),
        ({"input": {"name": "i", "shape": [-1, *SHAPE], "type": "int32"}}, 65, "type 'int32'"),
        ({"output": {"name": "o", "shape": [-1, -1], "type": "float32"}}, 65, "logits of shape"),
    ],
)
def test_engine_for_elsewhere_is_refused_before_it_is_opened(
    tensorrt: TensorRT, tmp_path: Path, changes: dict[str, Any], code: int, match: str
):
    with refusal(code, match) as refused:
        TensorRtModel(write_engine(tmp_path, **changes))
    assert "advprune export RUN --target tensorrt" in str(refused.value)
    assert not tensorrt.opened


@pytest.mark.parametrize(
    "changes",
    [
        {"tensorrt": "11.4.0.9"},
        {"tensorrt": "11.3.2", "version_compatible": True},
        {"compute_capability": "9.0", "gpu": "H200", "hardware_compatible": True},
    ],
)
def test_engine_that_fits_is_opened(tensorrt: TensorRT, tmp_path: Path, changes: dict[str, Any]):
    images = make_images(2)
    logits = TensorRtModel(write_engine(tmp_path, **changes)).predict(images)
    np.testing.assert_array_equal(logits, logits_of(images))
    # Host code is what a version-compatible engine brings along, and no other may.
    assert tensorrt.opened == [(b"native code", changes.get("version_compatible", False))]


def test_hardware_compatible_begins_with_ampere(
    tensorrt: TensorRT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", HostCuda("T4", (7, 5)))
    with refusal(78, r"capability 8\.0 or later, here is T4 with 7\.5"):
        TensorRtModel(write_engine(tmp_path, hardware_compatible=True))
    assert not tensorrt.opened


def test_what_is_missing_is_named(tensorrt: TensorRT, tmp_path: Path):
    engine = write_engine(tmp_path)
    with refusal(66, r"none\.plan: cannot be read"):
        TensorRtModel(tmp_path / "none.plan")
    (tmp_path / "model.plan.json").unlink()
    with refusal(66, r"model\.plan\.json: the engine's card .*--target tensorrt"):
        TensorRtModel(engine)
    for text in ("", "{", "[]", "3", '{"schema": 1, "schema": 1}'):
        (tmp_path / "model.plan.json").write_text(text)
        with refusal(65, r"model\.plan\.json: not an engine card"):
            TensorRtModel(engine)
    assert not tensorrt.opened


def test_engine_that_is_not_what_its_card_says_is_refused(tensorrt: TensorRT, tmp_path: Path):
    engine = write_engine(tmp_path)
    for name, value in (
        ("shapes", {"images": (-1, *SHAPE), "logits": (-1, 1000)}),
        ("shapes", {"images": (-1, *SHAPE), "logits": (-1, CLASSES), "more": (-1, 1)}),
        ("shapes", {"images": (-1, *SHAPE)}),
        ("types", {"images": DataType.FLOAT, "logits": DataType.HALF}),
        ("types", {"images": DataType.INT32, "logits": DataType.FLOAT}),
    ):
        changed = TensorRT()
        setattr(changed, name, value)
        changed.types.setdefault("more", DataType.FLOAT)
        sys.modules["tensorrt"] = changed
        with refusal(65, "differs from its card"):
            TensorRtModel(engine)
    with refusal(65, "differs from its card"):
        TensorRtModel(write_engine(tmp_path, batch={"max": LARGEST + 1}))


def test_wrong_images_are_refused(tensorrt: TensorRT, tmp_path: Path):
    model = TensorRtModel(write_engine(tmp_path))
    wrong: list[Any] = [
        make_images(2).astype(np.float64),
        make_images(2)[:, :2],
        make_images(2)[:0],
        make_images(2) + 1,
        np.full((1, *SHAPE), np.nan, np.float32),
    ]
    for images in wrong:
        with refusal(65, "predict: "):
            model.predict(images)
    assert not tensorrt.batches


def test_logits_that_are_not_finite_are_refused(tensorrt: TensorRT, tmp_path: Path):
    model = TensorRtModel(write_engine(tmp_path))
    tensorrt.answer = lambda images: logits_of(images) * np.float32(np.nan)
    with refusal(65, r"model\.plan: gave logits that are not finite"):
        model.predict(make_images(1))


def test_what_the_gpu_does_not_do_is_an_error(tensorrt: TensorRT, tmp_path: Path):
    model = TensorRtModel(write_engine(tmp_path))
    tensorrt.can_run = False
    for _ in range(2):  # what was logged is told once, not again with the next error
        with refusal(69, r"execution failed on Test GPU \(an illegal memory access\)"):
            model.predict(make_images(1))
    tensorrt.takes_batch = False
    with refusal(69, r"batch of \(1, 3, 4, 5\) refused on Test GPU;"):
        model.predict(make_images(1))
    tensorrt.can_run = tensorrt.takes_batch = True
    np.testing.assert_array_equal(model.predict(make_images(1)), logits_of(make_images(1)))
    tensorrt.can_open = False
    with refusal(78, r"TensorRT refuses it \(magic tag does not match\)"):
        TensorRtModel(write_engine(tmp_path))
    tensorrt.starts = False
    with refusal(69, r"does not start on Test GPU \(CUDA initialization failure\)"):
        TensorRtModel(write_engine(tmp_path))


def test_threads_take_turns(tensorrt: TensorRT, tmp_path: Path):
    model = TensorRtModel(write_engine(tmp_path))
    batches = [make_images(9) * np.float32(1 / n) for n in range(1, 9)]
    answers: dict[int, NDArray[np.float32]] = {}
    running, at_once = [0], set()

    def slow(images: NDArray[Any]) -> NDArray[np.float32]:
        running[0] += 1
        time.sleep(0.002)
        at_once.add(running[0])
        running[0] -= 1
        return logits_of(images)

    tensorrt.answer = slow

    def ask(index: int) -> None:
        answers[index] = model.predict(batches[index])

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert at_once == {1}
    for index, images in enumerate(batches):
        np.testing.assert_array_equal(answers[index], logits_of(images))


def test_missing_tensorrt_is_named(cuda: HostCuda, monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with refusal(69, f"tensorrt cannot be imported .*{INSTALL}"):
        TensorRtModel(write_engine(tmp_path))


def test_missing_gpu_is_named(tensorrt: TensorRT, cuda: HostCuda, tmp_path: Path):
    cuda.fails = "cudaGetDevice"
    with refusal(69, f"cudaGetDevice failed .cudaErrorInsufficientDriver.*{INSTALL}"):
        TensorRtModel(write_engine(tmp_path))
    cuda.fails = "cudaMalloc"
    with refusal(69, "cudaMalloc failed .cudaErrorMemoryAllocation"):
        TensorRtModel(write_engine(tmp_path))


def test_memory_is_given_back_with_the_model(tensorrt: TensorRT, cuda: HostCuda, tmp_path: Path):
    model = TensorRtModel(write_engine(tmp_path))
    assert len(cuda.buffers) == 2 and len(cuda.streams) == 1
    model.predict(make_images(1))
    assert cuda.current == [0]
    del model
    gc.collect()
    assert not cuda.buffers and not cuda.streams
