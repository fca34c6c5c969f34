"""Models as NVIDIA's Triton serves them: a repository of folders. Standard library only.

A model is a folder with `config.pbtxt`, in protobuf's text format, the labels beside it, and the
file itself in a folder for its version.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import DeployError
from deploy.files import label_lines, whole_folder, write_atomic, write_sums

LABELS = "labels.txt"
_VERSION = "1"
# What runs a file, by its suffix, and where.
_BACKENDS = {".onnx": ("onnxruntime", "KIND_CPU"), ".plan": ("tensorrt", "KIND_GPU")}
# Triton's names of numpy's types.
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8"}
# One thread for a request, as everywhere here: more wait by spinning and disturb their neighbours.
_THREADS = {"intra_op_thread_count": "1", "inter_op_thread_count": "1"}
_ESCAPES = {ord('"'): r"\"", ord("\\"): r"\\", ord("\n"): r"\n"}


@dataclass(frozen=True)
class Tensor:
    """An end of a graph: its name, numpy's name of its type, and its shape without the batch."""

    name: str
    type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """What is served under a name.

    Attributes:
        name: letters, digits, - and _; see `model_name`.
        file: an ONNX file for CPUs, or a TensorRT engine.
        max_batch: largest batch that requests may be joined to, at least 1.
    """

    name: str
    file: Path
    input: Tensor
    output: Tensor
    max_batch: int


def write_repository(folder: Path, models: Sequence[Model], labels: Sequence[str]) -> None:
    """Write a model repository with digests of all files: completely, or not at all.

    Raises:
        DeployError: 65, a label is no line of text, or an end has another type than images and
            logits have; 66, a file is missing; 73, the folder exists or cannot be created; 74, a
            write failed.
    """
    label_lines(labels)
    for model in models:
        if not model.file.is_file():
            raise DeployError(f"{model.file}: no such file; run the export first", 66)
    with whole_folder(folder) as draft:
        fill(draft, models, labels)
        write_sums(draft)


def fill(folder: Path, models: Sequence[Model], labels: Sequence[str]) -> None:
    """Write the folder of each model; a file that is still to be built is left for its builder.

    Raises:
        DeployError: 65, 73 or 74, as `write_repository`.
    """
    lines = label_lines(labels)
    configurations = {model: configuration(model) for model in models}
    for model, text in configurations.items():
        place = folder / model.name
        place.mkdir(parents=True)
        write_atomic(place / "config.pbtxt", text.encode())
        write_atomic(place / LABELS, lines)
        if model.file.is_file():
            (place / _VERSION).mkdir()
            write_atomic(place / _VERSION / f"model{model.file.suffix}", model.file.read_bytes())


def model_name(text: str) -> str:
    """A name made of a text: what is neither letter, digit, - nor _ becomes _."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)


def configuration(model: Model) -> str:
    """The content of `config.pbtxt`.

    Raises:
        DeployError: 65, the type of an end is not one of images or logits.
    """
    backend, kind = _BACKENDS[model.file.suffix]
    parameters = _THREADS if backend == "onnxruntime" else {}
    lines = [
        f"name: {_quoted(model.name)}",
        f"backend: {_quoted(backend)}",
        f"max_batch_size: {model.max_batch}",
        f"input {{ {_end(model.input)} }}",
        f"output {{ {_end(model.output)} label_filename: {_quoted(LABELS)} }}",
        f"instance_group {{ count: 1 kind: {kind} }}",
        "dynamic_batching {}",
        *(
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
            for key, value in parameters.items()
        ),
    ]
    return "".join(f"{line}\n" for line in lines)


def _end(end: Tensor) -> str:
    if end.type not in _TYPES:
        known = ", ".join(_TYPES)
        raise DeployError(f"triton: {end.name} is {end.type}; serve a model of {known}", 65)
    dims = ", ".join(map(str, end.dims))
    return f"name: {_quoted(end.name)} data_type: {_TYPES[end.type]} dims: [{dims}]"


def _quoted(text: str) -> str:
    """A string literal in protobuf's text format, of printable ASCII whatever is in it."""
    return '"' + "".join(map(_escaped, text.encode())) + '"'


def _escaped(byte: int) -> str:
    # Three octal digits always, so that a digit that follows is not taken for one of them.
    return _ESCAPES.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}")
