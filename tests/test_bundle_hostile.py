"""What a stranger puts in a bundle is refused unread: by name, kind, size, signature, digest."""

import io
import json
import os
import pickle
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import WEIGHTS, linear, make_bundle, reading, reseal
from onnx import TensorProto, helper
from signing_keys import Keys, make_keys

from deploy.bundle import check
from deploy.bundle.check import check_bundle
from deploy.bundle.manifest import LARGEST_FILE, LARGEST_MANIFEST, MOST_FILES
from deploy.errors import DeployError

FILES = (
    "model.onnx",
    "model.int8.x86.onnx",
    "golden.npz",
    "replay.npz",
    "labels.txt",
    "edge_verify.py",
    "manifest.json",
    "triton/linear/1/model.onnx",
)
MARKER = "a-stranger-was-here"


class Runs:
    """Unpickled, it writes a file into the current folder."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {MARKER}",)


def _objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Runs()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def _bomb() -> bytes:
    """A zip file of arrays that are a thousand times as large as it is."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(10_000_000))
        archive.writestr("../../outside.npy", b"")
    return buffer.getvalue()


def _huge_header() -> bytes:
    """An array that claims 256 TB."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (64000000000000,), }"
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def _allocation() -> bytes:
    """A graph of a few bytes that asks for 256 GB."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [2**36])
    node = helper.make_node("ConstantOfShape", ["shape"], ["x"])
    model = onnx.load_model_from_string(linear(WEIGHTS[:, :1], [node]))
    model.graph.initializer.append(shape)
    return model.SerializeToString()


PAYLOADS: dict[str, Callable[[], bytes]] = {
    "a pickle": lambda: pickle.dumps(Runs()),
    "pickled objects in an array": _objects,
    "a bomb": _bomb,
    "an array of 256 TB": _huge_header,
    "a graph of 256 GB": _allocation,
    "a graph that reads another file": lambda: reading("../../../etc/passwd"),
    "endless brackets": lambda: b"[" * 200_000,
    "a script": lambda: f"import os; os.system('touch {MARKER}')\n".encode(),
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def bundle(tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A signed bundle, in a process where nothing may be parsed."""
    made = make_bundle(tmp_path, keys.private)
    monkeypatch.chdir(tmp_path)
    return made


def refused(folder: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> str:
    """The refusal, by a check that parsed nothing and let nothing of it run."""
    with monkeypatch.context() as patch:
        patch.setattr(json, "loads", lambda *_, **__: pytest.fail("JSON was parsed"))
        patch.setattr(np, "load", lambda *_, **__: pytest.fail("arrays were parsed"))
        patch.setattr(pickle, "loads", lambda *_, **__: pytest.fail("a pickle was read"))
        patch.setattr(onnx, "load_model_from_string", lambda _: pytest.fail("was parsed"))
        patch.setattr(check, "ask", lambda *_: pytest.fail("a model was opened"))
        with pytest.raises(DeployError) as refusal:
            check_bundle(folder, keys.public)
    assert refusal.value.exit_code == 65
    assert not Path(MARKER).exists()
    return str(refusal.value)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("what", PAYLOADS)
def test_a_hostile_file_is_refused_unread(
    bundle: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch, file: str, what: str
) -> None:
    content = PAYLOADS[what]()
    (bundle / file).write_bytes(content)
    assert file in refused(bundle, keys, monkeypatch)
    # Nor does it help to say in the bundle that it belongs there.
    reseal(bundle, file, content)
    assert "manifest.json.sig: no signature" in refused(bundle, keys, monkeypatch)


def _socket(bundle: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    before = Path.cwd()
    os.chdir(bundle)  # the path of a socket must be short
    listening.bind("socket")
    os.chdir(before)
    listening.close()


def _large(name: str, size: int) -> Callable[[Path], None]:
    def make(bundle: Path) -> None:
        with (bundle / name).open("r+b") as file:
            file.truncate(size)

    return make


def _many(bundle: Path) -> None:
    for number in range(2 * MOST_FILES + 1):
        (bundle / f"file-{number}").touch()


def _deep(bundle: Path) -> None:
    folder = bundle
    for _ in range(200):
        folder = folder / "deeper"
    folder.mkdir(parents=True)


PLACES: dict[str, Callable[[Path], object]] = {
    "a link to a device": lambda b: (b / "x").symlink_to("/dev/zero"),
    "a link to a secret": lambda b: (b / "x").symlink_to("/etc/shadow"),
    "a link that leads nowhere": lambda b: (b / "x").symlink_to("nowhere"),
    "a link to itself": lambda b: (b / "x").symlink_to("x"),
    "a link in a folder": lambda b: (b / "triton" / "x").symlink_to("/"),
    "a pipe that nobody writes": lambda b: os.mkfifo(b / "x"),
    "a socket": _socket,
    "a model of 2 GB and a byte": _large("model.onnx", LARGEST_FILE + 1),
    "a manifest of a MB and a byte": _large("manifest.json", LARGEST_MANIFEST + 1),
    "sums of a TB": _large("SHA256SUMS", 2**40),
    "a signature of a GB": _large("manifest.json.sig", 2**30),
    "two thousand files": _many,
    "two hundred folders": _deep,
    "a name of two lines": lambda b: (b / "a\nb").touch(),
    "a name that looks like another": lambda b: (b / "labels.tхt").touch(),
    "a name that is no text": lambda b: Path(os.fsdecode(bytes(b) + b"/\xff\xfe")).touch(),
}


@pytest.mark.parametrize("what", PLACES)
def test_what_is_no_plain_small_file_is_refused_unread(
    bundle: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    PLACES[what](bundle)
    message = refused(bundle, keys, monkeypatch)
    assert message.isprintable()


@pytest.mark.parametrize(
    "line",
    [
        f"{'0' * 64}  ../secret\n",
        f"{'0' * 64}  /etc/passwd\n",
        f"{'0' * 64} *labels.txt\n",
        f"{'0' * 64}  labels.txt\n",
        "\n",
        "x",
        "é\n",
        f"{'A' * 64}  x\n",
        f"{'0' * 63}  x\n",
    ],
)
def test_sums_that_are_none_are_refused(
    bundle: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    sums = (bundle / "SHA256SUMS").read_text()
    (bundle / "SHA256SUMS").write_text(sums + line, "utf-8")
    refused(bundle, keys, monkeypatch)
