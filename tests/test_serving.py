"""Promise: an engine that many threads share answers each as if it were alone, for ever.

What is no request is refused by itself: whoever asks next, or meanwhile, gets the same bits.
"""

import ctypes
import gc
import itertools
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from exported_net import SHAPE, Exported
from numpy.typing import NDArray
from onnx import TensorProto, helper
from scipy import stats

from deploy.errors import DeployError
from deploy.runtime import EdgeModel, load

pytest_plugins = ["export_fixtures"]

ROOT = Path(__file__).parents[1]
ENGINES = [
    ("ort", "float_onnx"),
    ("ort", "x86"),
    ("ort", "camera"),
    ("openvino", "float_onnx"),
    ("openvino", "int8"),
]
SIZES = (1, 2, 7, 64)
Images = NDArray[np.float32]
Predict = Callable[[Images], Images]


class Request(NamedTuple):
    """Images, and the logits that nobody else disturbed."""

    images: Images
    golden: Images


@pytest.fixture(params=ENGINES, ids=lambda pair: f"{pair[0]} {pair[1]}")
def engine(request: pytest.FixtureRequest, exported: Exported) -> EdgeModel:
    runtime, form = request.param
    return load(getattr(exported, form), runtime=runtime)


def requests(predict: Predict, images: Images) -> list[Request]:
    """Of several sizes, every one of other images."""
    parts = [np.roll(images, -3 * i, axis=0)[:size] for i, size in enumerate(SIZES * 2)]
    return [Request(part, predict(part).copy()) for part in parts]


def serve(work: Sequence[Callable[[], object]], threads: int) -> None:
    """Do all of it in so many threads that start together; the first error is raised."""
    waiting: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    for item in work:
        waiting.put(item)
    start, errors = threading.Barrier(threads), list[BaseException]()

    def thread() -> None:
        start.wait()
        while not errors:
            try:
                waiting.get_nowait()()
            except queue.Empty:
                return
            except BaseException as error:
                errors.append(error)

    crew = [threading.Thread(target=thread) for _ in range(threads)]
    for member in crew:
        member.start()
    for member in crew:
        member.join()
    if errors:
        raise errors[0]


def answer(predict: Predict, request: Request) -> None:
    got = predict(request.images)
    assert got.dtype == np.float32 and got.tobytes() == request.golden.tobytes()


def test_threads_get_the_bits_that_one_gets(engine: EdgeModel, exported: Exported):
    asked = requests(engine.predict, exported.images)
    work = [lambda r=r: answer(engine.predict, r) for r in asked] * 30
    serve(work, threads=8)


def test_a_wrong_bit_would_be_seen(exported: Exported):
    model = load(exported.x86)
    (first, *_) = requests(model.predict, exported.images)
    wrong = first.golden.copy()
    wrong.view(np.uint32)[0, 3] ^= 1
    with pytest.raises(AssertionError):
        serve([lambda: answer(model.predict, Request(first.images, wrong))], threads=8)


# Requests ---------------------------------------------------------------------------------------


def _with(images: Images, value: float) -> Images:
    spoiled = images.copy()
    spoiled[-1, -1, -1, -1] = value
    return spoiled


HOSTILE: dict[str, Callable[[Images], Any]] = {
    "another height": lambda x: x[:, :, 1:],
    "other channels": lambda x: x[:, :1],
    "channels last": lambda x: x.transpose(0, 2, 3, 1),
    "an image alone": lambda x: x[0],
    "an axis more": lambda x: x[None],
    "a number": lambda x: np.float32(0.5),
    "an array without axes": lambda x: np.array(0.5, np.float32),
    "no images": lambda x: x[:0],
    "no images of no size": lambda x: np.zeros((0, 0, 0, 0), np.float32),
    "doubles": lambda x: x.astype(np.float64),
    "halves": lambda x: x.astype(np.float16),
    "pixels": lambda x: (x * 255).astype(np.uint8),
    "complex numbers": lambda x: x.astype(np.complex64),
    "booleans": lambda x: x > 0.5,
    "bytes in another order": lambda x: x.astype(">f4"),
    "objects": lambda x: x.astype(object),
    "words": lambda x: x.astype(str),
    "records": lambda x: np.zeros(x.shape, [("red", np.float32)]),
    "a list": lambda x: x.tolist(),
    "nothing": lambda x: None,
    "NaN": lambda x: _with(x, float("nan")),
    "Inf": lambda x: _with(x, float("inf")),
    "-Inf": lambda x: _with(x, float("-inf")),
    "NaN behind a mask": lambda x: np.ma.masked_invalid(_with(x, float("nan"))),
    "above 1": lambda x: _with(x, 1.0000001),
    "below 0": lambda x: _with(x, -1e-45),
    "pixels from 0 to 255": lambda x: x * np.float32(255),
}
ODD: dict[str, Callable[[Images], Images]] = {
    "read-only": lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
    "in Fortran's order": np.asfortranarray,
    "every second image of others": lambda x: np.repeat(x, 2, axis=0)[::2],
    "backwards twice": lambda x: np.ascontiguousarray(x[::-1, :, ::-1])[::-1, :, ::-1],
    "a part of larger images": lambda x: np.pad(x, ((0, 0), (0, 0), (3, 3), (3, 3)))[
        :, :, 3:-3, 3:-3
    ],
    "seen through axes last": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(
        0, 3, 1, 2
    ),
    "at an odd address": lambda x: np.frombuffer(b"x" + x.tobytes(), np.float32, offset=1).reshape(
        x.shape
    ),
    "kept once for all": lambda x: np.broadcast_to(x[:1], x.shape),
}


def refuse(predict: Callable[[Any], object], request: Any) -> None:
    with pytest.raises(DeployError, match=r"^predict: ") as caught:
        predict(request)
    assert caught.value.exit_code == 65 and "\n" not in str(caught.value)


def test_what_is_no_request_is_refused_and_the_next_is_answered(
    engine: EdgeModel, exported: Exported
):
    asked = itertools.cycle(requests(engine.predict, exported.images))
    for name, spoil in HOSTILE.items():
        images = exported.images[:5].copy()
        refuse(engine.predict, spoil(images))
        np.testing.assert_array_equal(images, exported.images[:5], err_msg=name)
        answer(engine.predict, next(asked))


@pytest.mark.parametrize("name", ODD)
def test_how_an_array_lies_in_memory_makes_no_difference(
    name: str, engine: EdgeModel, exported: Exported
):
    odd = ODD[name](exported.images[:6])
    plain = np.array(odd, order="C")
    answer(engine.predict, Request(odd, engine.predict(plain)))


def test_others_are_answered_meanwhile(engine: EdgeModel, exported: Exported):
    asked = requests(engine.predict, exported.images)
    good = [lambda r=r: answer(engine.predict, r) for r in asked] * 12
    spoiled = [spoil(exported.images[:5]) for spoil in HOSTILE.values()]
    bad = [lambda x=x: refuse(engine.predict, x) for x in spoiled] * 3
    work = [item for pair in zip(good, bad, strict=False) for item in pair]
    serve(work, threads=8)


@pytest.mark.parametrize("value", [float("nan"), 2.0])
def test_a_gib_of_what_is_no_image_is_refused_where_it_lies(exported: Exported, value: float):
    model = load(exported.x86)
    count = 2**30 // (4 * math.prod(SHAPE)) + 1
    huge = np.broadcast_to(np.float32(value), (count, *SHAPE))  # kept once
    assert huge.nbytes > 2**30
    before = _held()
    refuse(model.predict, huge)
    assert _held() - before < 2**26


_ASK = """
import resource, sys
from pathlib import Path
import numpy as np
from deploy.runtime import load

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

model = load(Path(sys.argv[1]), runtime=sys.argv[2])
shape, count = model.info.shape, int(sys.argv[3])
one = model.predict(np.full((1, *shape), 0.5, np.float32))
before = peak()
logits = model.predict(np.broadcast_to(np.float32(0.5), (count, *shape)))
np.testing.assert_array_equal(logits, np.repeat(one, count, axis=0))
sys.stdout.write(str(peak() - before))
"""


@pytest.mark.parametrize("runtime", ["ort", pytest.param("openvino", marks=pytest.mark.slow)])
def test_a_request_of_a_gib_is_answered_in_bounded_memory(runtime: str, tmp_path: Path):
    side, count = 1024, 128
    assert 4 * 2 * side * side * count == 2**30
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    ends = [
        helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 2, side, side]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2]),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "large.onnx"
    )
    words = [sys.executable, "-c", _ASK, str(tmp_path / "large.onnx"), runtime, str(count)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    # Pieces of 64 MiB, some of which the runtime has copies of.
    assert int(done.stdout) < 2**28


# For long ---------------------------------------------------------------------------------------

# The least that malloc hands out: whatever is lost once in every call costs more than that.
LEAST_LEAK = 32  # bytes
ROUNDS = 25


class _Malloc(ctypes.Structure):
    """What glibc's `mallinfo2` says, over all of its arenas."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )
    hblkhd: int
    uordblks: int


def _held() -> int:
    """Bytes that were handed out and not given back.

    As the allocators count them, not as pages of the process: those come and go as the machine
    needs memory. Python's own small blocks, which malloc does not see, count for the least leak.
    """
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Malloc
    found = libc.mallinfo2()
    return found.uordblks + found.hblkhd + LEAST_LEAK * sys.getallocatedblocks()


def _counts() -> tuple[int, int]:
    """Threads, and open files, of this process: a thread that was joined may be there a little."""
    looks = []
    for _ in range(100):
        threads, files = (len([*Path("/proc/self", kind).iterdir()]) for kind in ("task", "fd"))
        looks.append((threads, files))
        time.sleep(0.01)
    return min(looks)


def growth(engines: Sequence[Predict], images: Images, calls: int) -> float:
    """Bytes of memory gained in each call, at most: the upper end of a one-sided 95 % interval.

    The slope of a least-squares line through the memory of the process after each of `ROUNDS` times
    8, 16, 32 and 64 threads, all of which end before it is read. As many calls run before: malloc
    makes pools for 64 threads, which fill up more and more slowly. Every answer is held against its
    golden bits, and the process must end with the threads and files that it had half-way.

    Args:
        calls: that are counted.
    """
    work = [
        lambda r=r, p=predict: answer(p, r)
        for predict in engines
        for r in requests(predict, images)[: len(SIZES) - 1]
    ]
    levels = (8, 16, 32, 64) * ROUNDS
    each = calls // len(levels)
    endless = itertools.cycle(work)
    for threads in levels:
        serve([*itertools.islice(endless, each)], threads)
    before, used = _counts(), list[int]()
    for threads in levels:
        serve([*itertools.islice(endless, each)], threads)
        used.append(_held())
    assert _counts() == before
    slope, _, _, _, error = stats.linregress(each * np.arange(len(used)), used)
    return float(slope + stats.t.ppf(0.95, len(used) - 2) * error)


@pytest.mark.slow
def test_a_hundred_thousand_calls_are_right_and_leave_nothing_behind(
    exported: Exported, record_property: Callable[[str, object], None]
):
    engines = [load(path).predict for path in (exported.x86, exported.float_onnx)]
    assert growth(engines, exported.images, calls=100_000) < LEAST_LEAK
    record_property("trials", 100_000)


@pytest.mark.slow
def test_one_small_object_left_behind_by_each_call_would_be_seen(exported: Exported):
    model, kept = load(exported.x86), list[bytes]()

    def leaking(images: Images) -> Images:
        kept.append(os.urandom(8))
        return model.predict(images)

    assert growth([leaking], exported.images, calls=3_000) > LEAST_LEAK
