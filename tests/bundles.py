"""A small bundle with models that run, and ways to change one behind its own back."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from deploy.bundle.write import Contents, Replay, write_bundle
from deploy.recording import Recording
from deploy.triton import Model, Tensor

SHAPE, CLASSES, COUNT = (1, 8, 8), 10, 40
LABELS = [f"digit {i}" for i in range(CLASSES)]
METADATA = {
    "model": "linear",
    "threat": {"norm": "linf", "eps": 0.15, "low": 0.0, "high": 1.0},
    "sparsity": 0.99,
    "robust_accuracy": {"int8": {"value": 0.885, "low": 0.851, "high": 0.914}},
}
_RANDOM = np.random.default_rng(0)
SAMPLES = _RANDOM.integers(0, 256, (16, *SHAPE), dtype=np.uint8)
WEIGHTS = _RANDOM.normal(size=(64, CLASSES)).astype(np.float32)
_CLEAN = _RANDOM.integers(0, 256, (COUNT, *SHAPE), dtype=np.uint8)
RECORDING = Recording(
    clean=_CLEAN,
    adversarial=np.clip(_CLEAN / np.float32(255) + np.float32(0.1), 0, 1).astype(np.float32),
    labels=_RANDOM.integers(0, CLASSES, COUNT),
    indices=np.arange(COUNT),
)
PROTOCOL = {
    "data": "d" * 64,
    "images": "e" * 64,
    "labels": "f" * 64,
    "threat": METADATA["threat"],
    "attacks": [{"name": "pgd", "steps": 20}],
    "seed": 0,
    "input": "float32 NCHW [0,1]",
}


def linear(weights: NDArray[np.float32], more: list[onnx.NodeProto] | None = None) -> bytes:
    """An ONNX file that multiplies pixels by weights; nodes to be added run after it."""
    nodes = [
        helper.make_node("Flatten", ["images"], ["pixels"]),
        helper.make_node("MatMul", ["pixels", "weights"], ["logits"]),
    ]
    graph = helper.make_graph(
        [*nodes, *(more or [])],
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(weights, "weights")],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def reading(path: str) -> bytes:
    """The same file, but that its weights are said to lie in another one."""
    model = onnx.load_model_from_string(linear(WEIGHTS))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=path)
    return model.SerializeToString()


def logits_of(images: NDArray[Any]) -> NDArray[np.float32]:
    scale = 255 if images.dtype == np.uint8 else 1
    floats = images.astype(np.float32) / np.float32(scale)
    return np.asarray(floats.reshape(len(images), -1) @ WEIGHTS, np.float32)


def contents(folder: Path, **changes: Any) -> Contents:
    """What a bundle is made of; the files of its models are written into `folder`."""
    models = {"fp32": folder / "model.onnx", "int8": folder / "model.int8.x86.onnx"}
    for path in models.values():
        path.write_bytes(linear(WEIGHTS))
    replay = Replay(
        RECORDING,
        RECORDING.protocol(PROTOCOL),
        clean=dict.fromkeys(models, logits_of(RECORDING.clean)),
        adversarial=dict.fromkeys(models, logits_of(RECORDING.adversarial)),
    )
    ends = Tensor("images", "float32", SHAPE), Tensor("logits", "float32", (CLASSES,))
    made = Contents(
        name="linear",
        release=3,
        models=models,
        input={"name": "images", "type": "float32", "layout": "NCHW", "shape": [*SHAPE]},
        labels=LABELS,
        metadata=METADATA,
        samples=SAMPLES,
        logits=dict.fromkeys(models, logits_of(SAMPLES)),
        replay=replay,
        served=[Model("linear", models["fp32"], *ends, max_batch=8)],
        beside={"model_card.md": b"# linear\n", "edge_verify.py": b"print('checked')\n"},
    )
    return replace(made, **changes)


def make_bundle(folder: Path, key: Path | None = None, **changes: Any) -> Path:
    """A whole bundle below a folder, with the files of its models beside it."""
    folder.mkdir(exist_ok=True)
    write_bundle(folder / "bundle", contents(folder, **changes), key)
    return folder / "bundle"


def reseal(bundle: Path, name: str, content: bytes) -> None:
    """Change a file and everything in the bundle that vouches for it, but for a signature."""
    (bundle / name).write_bytes(content)
    if name != "manifest.json":
        manifest = json.loads((bundle / "manifest.json").read_text())
        digest = hashlib.sha256(content).hexdigest()
        manifest["files"][name] |= {"sha256": digest, "bytes": len(content)}
        (bundle / "manifest.json").write_text(json.dumps(manifest))
    unsummed = {"SHA256SUMS", "manifest.json.sig"}
    paths = [path for path in bundle.rglob("*") if path.is_file() and path.name not in unsummed]
    lines = {
        path.relative_to(bundle).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }
    sums = "".join(f"{digest}  {name}\n" for name, digest in sorted(lines.items()))
    (bundle / "SHA256SUMS").write_text(sums)
