"""Images and an adversarial one for each, kept so that any engine can be asked again anywhere.

To find adversarial images takes gradients, hours and torch; to show them to an engine takes numpy.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import DeployError
from deploy.files import write_atomic

ATTACK = "replay"
LARGEST = 2**31  # bytes of all arrays of a file together


@dataclass(frozen=True)
class Recording:
    """N images of a verification, each with the adversarial image that fooled most engines.

    Attributes:
        clean: uint8 (N, C, H, W).
        adversarial: float32 (N, C, H, W) in the box, within the threat of `clean` / 255.
        labels: int64 (N,).
        indices: int64 (N,), the images by their identities in the data set.
    """

    clean: NDArray[np.uint8]
    adversarial: NDArray[np.float32]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def pixels(self) -> NDArray[np.float32]:
        """The images themselves as engines take them, float32 (N, C, H, W) in [0, 1]."""
        return self.clean.astype(np.float32) / np.float32(255)

    def survived(
        self, clean: NDArray[np.float32], adversarial: NDArray[np.float32]
    ) -> dict[str, list[bool]]:
        """Right or not, image by image: "clean", and "replay" for right on both.

        Args:
            clean, adversarial: float32 (N, K), what an engine answers to either kind.
        """
        right = clean.argmax(axis=1) == self.labels
        held = right & (adversarial.argmax(axis=1) == self.labels)
        return {"clean": right.tolist(), ATTACK: held.tolist()}

    def protocol(self, of: Mapping[str, Any]) -> dict[str, Any]:
        """What verdicts on this recording depend on beside the engine.

        Args:
            of: the protocol of the verification.
        """
        return {
            **of,
            "images": digest_of_integers(self.indices),
            "labels": digest_of_integers(self.labels),
            "attacks": [{"name": ATTACK, "sha256": _sha256(self.adversarial)}],
        }


def save(path: Path, recording: Recording) -> None:
    """Raises DeployError 73 or 74 where the file cannot be created or written."""
    write_atomic(path, npz(vars(recording)))


def load(path: Path) -> Recording:
    """Read a recording from a file whose digest was checked.

    Raises:
        DeployError: 65, it is not one.
    """
    try:
        arrays = arrays_of(path)
        recording = Recording(**{name: arrays[name] for name in Recording.__annotations__})
        kinds = [array.dtype for array in vars(recording).values()]
        shapes = {recording.clean.shape, recording.adversarial.shape}
        if kinds != [np.uint8, np.float32, np.int64, np.int64] or len(shapes) > 1:
            raise ValueError(f"arrays of {kinds} and {shapes}")
        counts = {recording.labels.shape, recording.indices.shape, recording.clean.shape[:1]}
        if recording.clean.ndim != 4 or len(counts) > 1:
            raise ValueError(f"images of {recording.clean.shape} for {counts}")
    except (ValueError, KeyError) as error:
        raise DeployError(f"{path}: not a recording ({error}); run verify again", 65) from error
    return recording


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """What `np.savez_compressed` writes, without times: equal arrays, equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, np.ascontiguousarray(array), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, entry.getvalue())
    return buffer.getvalue()


def digest_of_integers(integers: NDArray[np.int64]) -> str:
    """SHA-256 as protocols hold it, of int64 little-endian on every machine."""
    return _sha256(integers.astype("<i8"))


def _sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def arrays_of(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of an npz file.

    Raises:
        ValueError: it is none.
    """
    data = path.read_bytes()
    try:
        # Through memory: np.load leaves a file that it cannot read open.
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            size = sum(entry.file_size for entry in archive.zip.infolist())
            if size > LARGEST:
                raise ValueError(f"unpacks to {size} bytes, more than {LARGEST}")
            arrays = {name: archive[name] for name in archive.files}
    # A broken file makes numpy and zipfile fail in their own ways.
    except Exception as error:
        raise ValueError(f"no arrays in an npz file ({error!r})") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy gives what is no array as bytes
            raise ValueError(f"{name} is no array")
    return arrays
