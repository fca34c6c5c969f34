"""What is recorded for a device is what was measured: its images, its verdicts, its protocol."""

import hashlib
import io
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import PROTOCOL, RECORDING

from deploy import recording
from deploy.errors import DeployError
from deploy.recording import Recording, arrays_of, load, npz, save


def test_a_recording_survives_its_file(tmp_path: Path) -> None:
    save(tmp_path / "recording.npz", RECORDING)
    found = load(tmp_path / "recording.npz")
    for name, array in vars(RECORDING).items():
        assert np.array_equal(getattr(found, name), array)
    assert np.array_equal(found.pixels * np.float32(255), RECORDING.clean)
    assert found.protocol(PROTOCOL) == RECORDING.protocol(PROTOCOL)


def test_equal_arrays_are_equal_bytes_that_numpy_reads(tmp_path: Path) -> None:
    arrays = {"a": np.arange(5), "b": np.zeros((2, 3), np.float32)}
    assert npz(arrays) == npz(arrays)
    (tmp_path / "x.npz").write_bytes(npz(arrays))
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        assert {name: archive[name].tolist() for name in archive.files} == {
            name: array.tolist() for name, array in arrays.items()
        }


def test_an_image_survives_if_it_is_right_both_times() -> None:
    recording = replace(RECORDING, labels=np.array([0, 0, 1, 1]))
    clean = np.eye(2, dtype=np.float32)[[0, 0, 1, 0]]
    adversarial = np.eye(2, dtype=np.float32)[[0, 1, 1, 1]]
    assert recording.survived(clean, adversarial) == {
        "clean": [True, True, True, False],
        "replay": [True, False, True, False],
    }


@pytest.mark.parametrize("name", ["adversarial", "labels", "indices"])
def test_the_protocol_tells_recordings_apart(name: str) -> None:
    changed = getattr(RECORDING, name).copy()
    changed.flat[0] = 1 - changed.flat[0]
    protocol = replace(RECORDING, **{name: changed}).protocol(PROTOCOL)
    assert protocol != RECORDING.protocol(PROTOCOL)
    assert protocol["data"] == PROTOCOL["data"] and protocol["seed"] == 0


def test_digests_are_those_of_verification() -> None:
    """Of 64-bit little-endian integers, whatever the machine."""
    wide = torch.from_numpy(RECORDING.indices).numpy().astype("<i8").tobytes()
    assert RECORDING.protocol(PROTOCOL)["images"] == hashlib.sha256(wide).hexdigest()


def _without(name: str) -> dict[str, np.ndarray]:
    return {key: array for key, array in vars(RECORDING).items() if key != name}


# Entries that numpy does not take for arrays, or cannot read in one way or another.
DAMAGE = [
    (rb"\x93NUMPY", b"\x00NUMPY"),
    (rb"\), \}", b"), {"),
    (rb"'\|u1'", b"'|O8'"),
    (rb"'shape': \(40", b"'shape': (9" + b"9" * 12),
]


def damaged(pattern: bytes, other: bytes) -> bytes:
    """A recording whose first entry is damaged, under a checksum that fits."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(npz(vars(RECORDING)))) as whole,
        zipfile.ZipFile(buffer, "w") as archive,
    ):
        for number, name in enumerate(whole.namelist()):
            content = whole.read(name)
            changed = re.sub(pattern, other, content, count=1) if number == 0 else content
            assert changed != content or number
            archive.writestr(name, changed)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        npz(_without("labels")),
        npz(vars(RECORDING) | {"labels": RECORDING.labels[:-1]}),
        npz(vars(RECORDING) | {"clean": RECORDING.clean.astype(np.float32)}),
        npz(vars(RECORDING) | {"adversarial": RECORDING.adversarial[..., :-1]}),
        npz({name: array[..., 0] for name, array in vars(RECORDING).items()}),
        *(damaged(*change) for change in DAMAGE),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recording.npz").write_bytes(content)
    with pytest.raises(DeployError, match="not a recording") as refusal:
        load(tmp_path / "recording.npz")
    assert refusal.value.exit_code == 65
    assert "\n" not in str(refusal.value)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", allow_pickle=True, a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        arrays_of(tmp_path / "x.npz")


def test_an_empty_recording_is_still_one(tmp_path: Path) -> None:
    empty = Recording(*(array[:0] for array in vars(RECORDING).values()))
    save(tmp_path / "recording.npz", empty)
    assert len(load(tmp_path / "recording.npz")) == 0


def test_a_file_that_unpacks_to_more_than_it_may_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recording.npz").write_bytes(npz({"clean": np.zeros(10**6)}))
    monkeypatch.setattr(recording, "LARGEST", 10**6)
    with pytest.raises(DeployError, match="unpacks to 8000128 bytes, more than 1000000"):
        load(tmp_path / "recording.npz")
