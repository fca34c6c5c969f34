"""Everything of the project that reads a file, with whole files and ways to damage them."""

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fuzz_mutations as mutations
import numpy as np
import onnx
import torch
from bundles import RECORDING, SHAPE, make_bundle, reseal
from fuzzing import Reader
from tensorrt_runtime import write_engine
from toy import make_images, make_net
from verdict_files import costs, example, health

from advprune import data
from advprune.data.imageset import digest
from advprune.masks import load_masks, save_masks
from advprune.models import Architecture, checkpoint
from advprune.models.state_dict import load_state_dict
from advprune.twin import differentiable
from deploy import edge_verify, recording, verdicts
from deploy.bundle.archive import pack, unpack
from deploy.bundle.check import check_integrity
from deploy.bundle.manifest import SUMS
from deploy.gate import evaluate
from deploy.runtime import load
from deploy.runtimes.engine_card import check_gpu, check_version, read_card
from deploy.sealed import seal
from export import graph
from pipeline.files import sha256
from pipeline.recipe import Recipe
from pipeline.resolve import presets, resolve, to_toml
from pipeline.stage import MANIFEST, read_artifact

_SHAPE, _CLASSES = (1, 6, 6), 3
_ARCHITECTURE = Architecture("resnet20", _CLASSES, _SHAPE, (0.5,), (0.25,), {"fc": (3, 20)})
_HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
_FLOAT = f"""{_HEAD}
net (float[N, 1, 6, 6] images) => (float[N, 3] logits)
<float[4, 1, 3, 3] w = {{{", ".join(["0.5", "-0.25", "0", "1"] * 9)}}}, float[4] b = {{0, 1, 2, 3}},
 float[3, 4] v = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}, float[3] c = {{0, 0.5, 1}}>
{{
 h = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (images, w, b)
 r = Relu (h)
 p = GlobalAveragePool (r)
 f = Flatten (p)
 logits = Gemm <transB = 1> (f, v, c)
}}"""
_INT8 = f"""{_HEAD}
net (float[N, 1, 6, 6] images) => (float[N, 3] logits)
<float s = {{0.0078125}}, int8 z = {{0}}, float[4] sw = {{0.1, 0.2, 0.3, 0.4}},
 int8[4] zw = {{0, 0, 0, 0}},
 int8[4, 1, 3, 3] w = {{{", ".join(["1", "-2", "0", "127"] * 9)}}}, int64[2] flat = {{0, -1}},
 float[4, 3] v = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}>
{{
 q = QuantizeLinear (images, s, z)
 x = DequantizeLinear (q, s, z)
 k = DequantizeLinear <axis = 0> (w, sw, zw)
 h = Conv <kernel_shape = [3, 3], strides = [2, 2]> (x, k)
 r = Relu (h)
 p = ReduceMean <axes = [2, 3], keepdims = 1> (r)
 f = Reshape (p, flat)
 logits = MatMul (f, v)
}}"""


def readers(folder: Path) -> dict[str, Reader]:
    """Every reader by name, working in an empty folder."""
    return {**_graphs(folder), **_tensors(folder), **_texts(folder), **_bundles(folder)}


def _graphs(folder: Path) -> dict[str, Reader]:
    samples = [
        onnx.parser.parse_model(text).SerializeToString()  # pyright: ignore[reportAttributeAccessIssue]
        for text in (_FLOAT, _INT8)
    ]
    ways = (mutations.of_bytes, mutations.of_protobuf, mutations.of_protobuf)
    images = np.zeros((2, *_SHAPE), np.float32)
    path = folder / "model.onnx"

    def run(content: bytes) -> None:
        path.write_bytes(content)
        engine = load(path)
        if engine.info.shape == _SHAPE:  # all callers compare it with that of their images
            engine.predict(images)

    return {
        "graph": Reader(samples, ways, _from(path, graph.load)),
        "twin": Reader(samples, ways, lambda content: differentiable(content, "model.onnx")),
        "engine": Reader(samples, ways, run),
    }


def _tensors(folder: Path) -> dict[str, Reader]:
    net = make_net()
    checkpoint.save(net, _ARCHITECTURE, folder / "net")
    weights, architecture = (
        folder / "net" / name for name in ("weights.safetensors", "architecture.json")
    )
    state, buffer = net.state_dict(), io.BytesIO()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, buffer)
    kept = {name: value > 0 for name, value in state.items() if value.ndim > 1}
    save_masks(kept, folder / "masks.safetensors")
    masks = (folder / "masks.safetensors").read_bytes()
    toy = make_images(6, 3)
    named = digest(toy.classes, toy.augment, toy.parts)
    data.save(replace(toy, digest=named), folder / "data")
    images, words = (folder / "data" / name for name in ("data.safetensors", "data.json"))
    recording.save(folder / "recording.npz", RECORDING)
    ways = (mutations.of_bytes, mutations.of_safetensors)
    return {
        "weights": Reader(
            [weights.read_bytes()],
            ways,
            _from(weights, lambda path: checkpoint.load_into(net, path)),
        ),
        "architecture": Reader(
            [architecture.read_bytes()],
            (mutations.of_bytes, mutations.of_json),
            _from(architecture, lambda path: checkpoint.load_architecture(path.parent)),
        ),
        "torch checkpoint": Reader(
            [buffer.getvalue()],
            (mutations.of_bytes, mutations.of_zip, mutations.of_zip),
            _from(folder / "other.pt", lambda path: load_state_dict(net, path)),
        ),
        "masks": Reader([masks], ways, _from(folder / "masks.safetensors", load_masks)),
        "image tensors": Reader(
            [images.read_bytes()], ways, _from(images, lambda path: data.read(path.parent))
        ),
        "image words": Reader(
            [words.read_bytes()],
            (mutations.of_bytes, mutations.of_json),
            _from(words, lambda path: data.read(path.parent)),
        ),
        "recording": Reader(
            [(folder / "recording.npz").read_bytes()],
            (mutations.of_bytes, mutations.of_zip, mutations.of_zip),
            _from(folder / "recording.npz", recording.load),
        ),
    }


def _texts(folder: Path) -> dict[str, Reader]:
    sealed = (mutations.of_bytes, mutations.of_sealed, mutations.of_sealed)
    found = example(measured=costs(), health=health(suspect=("H9",)))
    previous = {"artefact": found.artefact, "protocol_hash": found.protocol_hash}
    baseline = verdicts.Verdicts(
        found.protocol,
        found.artefact,
        found.correct,
        reason="first",
        previous=previous | {"accuracy": found.accuracy()},
    )
    (folder / "stage").mkdir()
    (folder / "stage" / "out.txt").write_text("out")
    entry = {"sha256": sha256(folder / "stage" / "out.txt"), "bytes": 3}
    manifest = {
        "schema": 2,
        "config": {"recipe": Recipe().model_dump(mode="json")},
        "parents": {"data": "0" * 64},
        "files": {"out.txt": entry},
        "metrics": {"loss": 0.5},
        "seconds": 1.0,
        "environment": {"device": "cpu"},
    }
    plan = write_engine(folder)
    recipes = [resolve({"preset": name}, environment={}) for name in presets()]

    def gate(path: Path) -> None:
        evaluate(found, verdicts.read(path))

    def artefact(path: Path) -> None:
        made = read_artifact(path.parent)
        made.check()
        assert len(made.digest) == 64 and made.metrics is not None

    def card(path: Path) -> None:
        read = read_card(plan, plan.read_bytes())
        check_version(read, plan, "11.4.0.106")
        check_gpu(read, plan, "Test GPU", "8.7")

    def recipe(path: Path) -> None:
        to_toml(*resolve({}, file=path, environment={}))

    return {
        "verdicts": Reader(
            [found.to_json(), baseline.to_json()], sealed, _from(folder / "v.json", gate)
        ),
        "manifest": Reader([seal(manifest)], sealed, _from(folder / "stage" / MANIFEST, artefact)),
        "engine card": Reader(
            [plan.with_name("model.plan.json").read_bytes()],
            sealed,
            _from(plan.with_name("model.plan.json"), card),
        ),
        "recipe": Reader(
            [to_toml(*each).encode() for each in recipes],
            (mutations.of_bytes,),
            _from(folder / "recipe.toml", recipe),
        ),
    }


def _bundles(folder: Path) -> dict[str, Reader]:
    ends = {"name": "images", "type": "float32", "layout": "NCHW", "low": 0.0, "high": 1.0}
    whole = make_bundle(folder / "made", input={**ends, "shape": [*SHAPE]})
    pack(whole, folder / "whole.tar")
    changed, out = folder / "changed", folder / "unpacked"

    def resealed(name: str) -> Callable[[bytes], None]:
        """A bundle with another file, which all digests fit but where they themselves are meant."""

        def read(content: bytes) -> None:
            shutil.rmtree(changed, ignore_errors=True)
            shutil.copytree(whole, changed)
            if name == SUMS:
                (changed / name).write_bytes(content)
            else:
                reseal(changed, name, content)
            check_integrity(changed)
            edge_verify.Bundle(edge_verify.check_files(changed))

        return read

    def archive(path: Path) -> None:
        shutil.rmtree(out, ignore_errors=True)
        unpack(path, out)

    return {
        "bundle manifest": Reader(
            [(whole / MANIFEST).read_bytes()],
            (mutations.of_bytes, mutations.of_json),
            resealed(MANIFEST),
        ),
        "bundle sums": Reader([(whole / SUMS).read_bytes()], (mutations.of_bytes,), resealed(SUMS)),
        "bundle arrays": Reader(
            [(whole / "golden.npz").read_bytes()],
            (mutations.of_bytes, mutations.of_zip),
            resealed("golden.npz"),
        ),
        "bundle archive": Reader(
            [(folder / "whole.tar").read_bytes()],
            (mutations.of_bytes, mutations.of_tar),
            _from(folder / "other.tar", archive),
        ),
    }


def _from(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A reader of paths as one of bytes, which leaves the folder as it was."""

    def written(content: bytes) -> object:
        before = path.read_bytes() if path.exists() else b""
        try:
            path.write_bytes(content)
            return read(path)
        finally:
            path.write_bytes(before)

    return written
