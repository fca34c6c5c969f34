"""What all runtimes of ONNX files share: the input forms, the precision, batches of any size."""

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from deploy.errors import DeployError
from deploy.runtime import (
    EdgeInfo,
    InputForm,
    Precision,
    camera_pixels,
    check_images,
    check_logits,
    images_at_once,
)

# A node's operator type as protobuf writes it: field 4, length 16, the name.
_DEQUANTIZE = b"\x22\x10DequantizeLinear"
# The attribute of a node Cast to half precision: field 1 is its name "to", field 3 its value 10.
_CAST_TO_HALF = b"\x0a\x02to\x18\x0a"
# The key under which a tensor names its file: a string of eight bytes. A length may be padded with
# zero bits, and a file that hides something might do that.
_NAMES_A_FILE = re.compile(rb"(?:\x08|\x88\x80*\x00)location")

End = tuple[str, Sequence[int | None]]


def precision_of(data: bytes) -> Precision:
    """Read from the graph, not from what its metadata claim: 8-bit graphs dequantise."""
    if _DEQUANTIZE in data:
        return "int8"
    return "fp16" if _CAST_TO_HALF in data else "fp32"


def names_files(data: bytes) -> bool:
    """Whether a graph has weights, or anything else, in files beside it."""
    return _NAMES_A_FILE.search(data) is not None


def ends(
    inputs: Sequence[End], outputs: Sequence[End], origin: str
) -> tuple[InputForm, tuple[int, int, int], int]:
    """Input form, (C, H, W) and number of classes of a graph that takes images.

    Args:
        inputs, outputs: type, e.g. "float32", and sizes of each, None where a size is free.
        origin: name of the file, for messages.

    Raises:
        DeployError: 65, the graph takes or gives something else.
    """
    if len(inputs) == len(outputs) == 1:
        match inputs[0], outputs[0]:
            case ("float32", (None, int(c), int(h), int(w))), (_, (*_, int(classes))):
                return "float32 NCHW", (c, h, w), classes
            case ("uint8", (None, int(h), int(w), int(c))), (_, (*_, int(classes))):
                return "uint8 NHWC", (c, h, w), classes
    raise DeployError(
        f"{origin}: takes {[(kind, [*sizes]) for kind, sizes in inputs]}; need one input, float32 "
        "(batch, C, H, W) or uint8 (batch, H, W, C) of fixed size and free batch",
        65,
    )


def predict(
    run: Callable[[NDArray], NDArray], images: NDArray[np.float32], info: EdgeInfo, origin: str
) -> NDArray[np.float32]:
    """Logits of images from an engine that takes batches in its own form, see `EdgeModel.predict`.

    Args:
        run: batch of at most `images_at_once` -> logits.
    """
    check_images(images, info.shape)
    form = camera_pixels if info.input == "uint8 NHWC" else np.asarray
    step = images_at_once(info.shape)
    chunks = [
        np.asarray(run(form(images[i : i + step])), np.float32) for i in range(0, len(images), step)
    ]
    logits = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
    check_logits(logits, origin)
    return logits
