"""Promise: what a stranger writes into an ONNX file is refused before a runtime sees a byte of it.

Each in one line and with its exit code, in memory that the file does not choose; and sound networks
are not refused.
"""

import itertools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
from exported_net import Exported
from hostile_graphs import (
    BOMBS,
    CASES,
    EXTERNAL,
    FILES,
    WEIGHTS,
    classifier,
    ending,
    matches,
    node,
    sized,
)
from living_nets import TORCHVISION, arch, living
from onnx import ModelProto, TensorProto, helper

from advprune.data import ImageSet
from advprune.errors import BadData
from deploy import runtime
from deploy.errors import DeployError
from deploy.graph_guard import MOST_NODES, check_graph
from deploy.runtime import load, read_graph
from deploy.runtimes.openvino import openvino
from deploy.runtimes.ort import OrtModel
from export import graph
from export.to_half import to_half
from export.to_onnx import to_onnx
from pipeline import target

pytest_plugins = ["export_fixtures"]

ROOT = Path(__file__).parents[1]
RUNTIMES = ("ort", "openvino")
# Beside twice the file; a process needs 0.1 GB before it reads one.
ROOM = 512 * 2**20
SECONDS = 10


@pytest.fixture
def no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a runtime is given anything."""
    for package, name in ((onnxruntime, "InferenceSession"), (openvino, "Core")):
        monkeypatch.setattr(package, name, lambda *_, **__: pytest.fail("a runtime was asked"))


def refused(path: Path, runtime: str = "ort") -> DeployError:
    with pytest.raises(DeployError) as caught:
        load(path, runtime=runtime)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 600
    assert message.startswith(f"{path}: ")
    return caught.value


# Hostile ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CASES if name not in BOMBS])
@pytest.mark.usefixtures("no_runtime")
def test_it_is_refused_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    case, folder = CASES[name], tmp_path / "here"
    folder.mkdir()
    for place in (folder, tmp_path):
        (place / "secret.bin").write_bytes(WEIGHTS.tobytes())
    (folder / "link.bin").symlink_to("secret.bin")
    os.link(folder / "secret.bin", folder / "hard.bin")
    monkeypatch.chdir(folder)
    path = folder / "model.onnx"
    path.write_bytes(case.make())
    for name in RUNTIMES:
        error = refused(path, name)
        assert error.exit_code == case.code
        assert matches(case, str(error)), str(error)


@pytest.mark.parametrize("name", [*EXTERNAL, "functions", "a training step"])
def test_nor_does_an_export_follow_it(name: str, tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(CASES[name].make())
    with pytest.raises(BadData, match=r"another file|of its own"):
        graph.load(path)


def test_a_runtime_by_itself_would_read_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else the cases of external data would prove little."""
    monkeypatch.chdir(tmp_path)
    Path("secret.bin").write_bytes(WEIGHTS.tobytes())
    data = CASES["external data beside it"].make()
    assert FILES["external data beside it"] == "secret.bin"
    images = np.ones((1, 1, 4, 4), np.float32)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    got = np.asarray(session.run(None, {"images": images})[0])
    np.testing.assert_allclose(got, WEIGHTS.sum(0, keepdims=True), atol=1e-5)


_ASK = """
import json, os, resource, sys, time
from pathlib import Path
from deploy.errors import DeployError
from deploy.graph_guard import check_graph
from deploy.runtime import read_graph

room, seconds = int(sys.argv[2]), int(sys.argv[3])
for path in sorted(Path(sys.argv[1]).iterdir()):
    child = os.fork()
    if not child:
        limit = 2 * path.stat().st_size + 2 * room
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        code, said = 0, ""
        try:
            check_graph(read_graph(path), str(path))
        except DeployError as error:
            code, said = error.exit_code, str(error)
        used = resource.getrusage(resource.RUSAGE_SELF)
        found = {"code": code, "said": said, "bytes": 1024 * used.ru_maxrss}
        found |= {"seconds": used.ru_utime + used.ru_stime}
        os.write(1, (json.dumps({path.name: found}) + "\\n").encode())
        os._exit(0)
    os.waitpid(child, 0)
"""


def ask(folder: Path) -> dict[str, dict[str, Any]]:
    """What the guard says of every file of a folder, each in a process with limits."""
    words = [sys.executable, "-c", _ASK, str(folder), str(ROOM), str(SECONDS)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return {k: v for line in done.stdout.splitlines() for k, v in json.loads(line).items()}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("bombs")
    for name, case in BOMBS.items():
        (folder / f"{name}.onnx").write_bytes(case.make())
    found = ask(folder)
    for path in folder.iterdir():
        found[path.name]["file"] = path.stat().st_size
        path.unlink()
    return found


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_bounded_memory_and_time(
    name: str, answers: dict[str, dict[str, Any]]
):
    case, found = BOMBS[name], answers[f"{name}.onnx"]
    assert found["code"] == case.code
    assert matches(case, found["said"]) and found["said"].isprintable(), found["said"]
    assert found["bytes"] <= 2 * found["file"] + ROOM
    assert found["seconds"] <= SECONDS


@pytest.mark.usefixtures("no_runtime")
def test_a_bomb_does_not_get_to_a_runtime(tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(BOMBS["256 GiB of ones"].make())
    for name in RUNTIMES:
        assert refused(path, name).exit_code == 65


def test_the_limits_of_the_test_hold(tmp_path: Path):
    """A process that takes more than it may is ended before it answers."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    (tmp_path / "model.onnx").write_bytes(classifier())
    code = _ASK.replace("check_graph(read_graph(path), str(path))", "bytearray(4 * room)")
    words = [sys.executable, "-c", code, str(tmp_path), str(ROOM), str(SECONDS)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert "MemoryError" in done.stderr and not done.stdout
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.slow
def test_a_network_of_most_nodes_and_a_large_file_are_looked_at_in_bounds(tmp_path: Path):
    names = ["images", *(f"x{i}" for i in range(MOST_NODES - 5)), "made"]
    chain = [node("Relu", *ends) for ends in itertools.pairwise(names)]
    (tmp_path / "long.onnx").write_bytes(ending(chain))
    large = TensorProto(name="large", data_type=1, dims=[2**28], raw_data=bytes(2**30))
    (tmp_path / "large.onnx").write_bytes(classifier([], [large]))
    for name, found in ask(tmp_path).items():
        assert (found["code"], found["seconds"] <= SECONDS) == (0, True), found
        assert found["bytes"] <= 2 * (tmp_path / name).stat().st_size + ROOM


# Files ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_runtime")
def test_what_is_no_plain_file_of_bounded_size_is_not_read(tmp_path: Path):
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    assert "is no plain file" in str(refused(pipe))
    zeros = tmp_path / "zeros.onnx"
    zeros.symlink_to("/dev/zero")
    assert "is no plain file" in str(refused(zeros))
    large = tmp_path / "large.onnx"
    with large.open("wb") as file:
        file.truncate(2**31 + 1)
    assert "2147483649 bytes, above 2147483648" in str(refused(large))


def test_a_link_to_a_sound_file_is_followed(tmp_path: Path):
    """As caches of models are made of them, and the user named it."""
    (tmp_path / "blob").write_bytes(classifier())
    (tmp_path / "model.onnx").symlink_to("blob")
    assert load(tmp_path / "model.onnx").info.classes == 3


def test_a_file_that_grows_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(classifier())
    measure = os.fstat

    def before_it_grows(file: int) -> os.stat_result:
        status = measure(file)
        with path.open("ab") as more:
            more.write(b"\x00")
        return status

    monkeypatch.setattr(os, "fstat", before_it_grows)
    with pytest.raises(DeployError, match=r"model\.onnx: changed while it was read"):
        read_graph(path)


def test_the_bytes_that_are_checked_run_and_are_attacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A file is read once: whoever replaces it meanwhile changes nothing."""
    path, seen = tmp_path / "model.onnx", dict[str, bytes]()
    path.write_bytes(classifier())
    checked, opened, twin = runtime.open_graph, OrtModel.__init__, target.differentiable

    def open_graph(data: bytes, *given: Any) -> Any:
        seen["checked"] = data
        path.write_bytes(b"another file")
        return checked(data, *given)

    def session(self: OrtModel, data: bytes, *given: Any) -> None:
        seen["run"] = data
        opened(self, data, *given)

    def differentiable(data: bytes, *given: Any) -> Any:
        seen["attacked"] = data
        return twin(data, *given)

    monkeypatch.setattr(target, "open_graph", open_graph)
    monkeypatch.setattr(OrtModel, "__init__", session)
    monkeypatch.setattr(target, "differentiable", differentiable)
    images = SimpleNamespace(shape=(1, 4, 4), classes=("a", "b", "c"), name="none")
    found = target.open_target(str(path), None, cast(ImageSet, images), "cpu")
    assert found.twins
    assert seen["checked"] is seen["run"] is seen["attacked"]
    assert seen["checked"] == classifier()


def test_what_is_onnx_and_another_format_at_once_runs_as_onnx(tmp_path: Path):
    """As the second wall, for whoever does not look first."""
    data = CASES["onnxruntime's format as well"].make()
    images = np.ones((1, 1, 4, 4), np.float32)
    with pytest.raises(Exception, match="ORT"):
        onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    got = OrtModel(data, "model.onnx", threads=1).predict(images)
    np.testing.assert_allclose(got, WEIGHTS.sum(0, keepdims=True), atol=1e-5)


# Sound ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["float_onnx", "int8", "x86", "camera"])
def test_what_the_project_exports_is_let_through(exported: Exported, form: str):
    path: Path = getattr(exported, form)
    check_graph(path.read_bytes(), path.name)


def test_half_precision_is_let_through(exported: Exported, tmp_path: Path):
    path = tmp_path / "half.onnx"
    graph.save(to_half(graph.load(exported.float_onnx)), path)
    check_graph(path.read_bytes(), path.name)


def _listed_among_inputs(model: ModelProto) -> None:
    """As files before format 4 list their weights."""
    model.graph.input.append(helper.make_tensor_value_info("weights", 1, WEIGHTS.shape))


def _other_library(model: ModelProto) -> None:
    """As tools leave behind that did not use it in the end."""
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _as_list(model: ModelProto) -> None:
    weights = model.graph.initializer[0]
    weights.float_data.extend(WEIGHTS.flatten().tolist())
    weights.ClearField("raw_data")


@pytest.mark.parametrize("change", [_listed_among_inputs, _other_library, _as_list])
def test_what_other_tools_write_is_let_through(
    change: Callable[[ModelProto], None], tmp_path: Path
):
    path = tmp_path / "model.onnx"
    path.write_bytes(classifier(change=change))
    images = np.random.default_rng(0).random((5, 1, 4, 4), dtype=np.float32)
    expected = images.reshape(5, -1) @ WEIGHTS
    np.testing.assert_allclose(load(path).predict(images), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks_are_let_through(name: str, tmp_path: Path):
    path = tmp_path / "net.onnx"
    to_onnx(living(name), arch(name).shape, path)
    check_graph(path.read_bytes(), name)


def test_a_network_whose_shapes_come_from_its_batch_is_let_through():
    """The way that attention takes to its shapes."""
    nodes = [
        node("Shape", "images", "n", start=0, end=1),
        node("Mul", "n heads", "rows"),
        node("Concat", "rows rest", "shape", axis=0),
        node("Reshape", "images shape", "made"),
    ]
    heads = helper.make_tensor("heads", TensorProto.INT64, [1], [4])
    rest = helper.make_tensor("rest", TensorProto.INT64, [1], [-1])
    check_graph(ending(nodes, [heads, rest]), "model.onnx")


def test_the_smallest_message_is_written_as_protobuf_does():
    """The bytes of the hostile files are what they are meant to be."""
    assert sized(2, b"x" * 200) == ModelProto(producer_name="x" * 200).SerializeToString()
