"""What a finished run ships: its models, what each must answer, and all that is said of them."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advprune.data import ImageSet, as_float
from deploy import triton
from deploy.bundle.bom import render_bom
from deploy.bundle.card import render_card
from deploy.bundle.write import SAMPLES, Contents, Replay
from deploy.errors import DeployError
from deploy.gate import EXIT_CODES
from deploy.recording import Recording
from deploy.recording import load as load_recording
from deploy.runtime import EdgeModel, load
from deploy.verdicts import Verdicts, read, verdict_file
from export import graph
from export.engine_card import describe
from pipeline.stage import Context
from pipeline.stages.export import ENGINE, LARGEST_BATCH, X86, engines_of
from pipeline.stages.gate import GATED
from pipeline.stages.quantize import FLOAT, INT8
from pipeline.stages.training import images_of
from pipeline.stages.verify import RECORDING

CARD, BOM = "model_card.md", "mlbom.cdx.json"
# What runs on a device, where nothing of this package is: its name there, and its module.
_SCRIPTS = {"edge_verify.py": "deploy.edge_verify", "build_engine.py": "export.build_engine"}


def demand_passed(context: Context) -> None:
    """What the gate stopped is not shipped by another door; it judges 8 bits and no other file.

    Raises:
        DeployError: 10, the gate failed.
    """
    if context["gate"].metrics["verdict"] == "FAIL":
        raise DeployError(
            f"{context.out}: the gate failed, so its {GATED} engine is not to be shipped; see "
            "`advprune gate`, or export the float one with --precision fp32",
            EXIT_CODES["FAIL"],
        )


def contents_of(context: Context, release: int = 0) -> Contents:
    """Everything that the bundle of a run is made of, each file checked against its digest."""
    folder, name = context["export"].check(), context.recipe.name
    # The TensorRT form computes what the x86 form computes, on another engine.
    models = {**engines_of(folder), "int8-tensorrt": folder / INT8}
    images, report = images_of(context), _report(context)
    engines = {model: load(path) for model, path in models.items()}
    verified = read(context["verify"].file(verdict_file(GATED)))
    replay = _replay(context, verified, engines)
    beside: dict[str, Path | bytes] = {
        CARD: render_card(name, release, report).encode(),
        BOM: render_bom(name, release, models, report, images.digest, _software(report)),
        verdict_file(GATED): _expected(verified, replay),
        **scripts(),
    }
    return Contents(
        name=name,
        release=release,
        models=models,
        input=input_of(folder / FLOAT),
        labels=images.classes,
        metadata=facts(context, folder / INT8),
        samples=samples_of(images),
        logits={model: answers(engine, images) for model, engine in engines.items()},
        replay=replay,
        served=_served(triton.model_name(name), folder),
        beside=beside,
    )


def facts(context: Context, onnx_path: Path) -> Mapping[str, Any]:
    """What a bundle says of its models: what the report found, and the operators of a graph."""
    report = _report(context)
    return {
        "model": context.recipe.model,
        "verdict": report["verdict"],
        "threat": report["threat"],
        "sparsity": report["sparsity"]["got"],
        "images": report["images"],
        "robust_accuracy": {e["name"]: e["worst"] for e in report["engines"]},
        "clean_accuracy": {e["name"]: e["clean"] for e in report["engines"]},
        "operators": sorted({node.op_type for node in graph.load(onnx_path).graph.node}),
    }


def samples_of(images: ImageSet) -> NDArray[np.uint8]:
    """The images that a device is tested with."""
    return _pad(images.test.images[:SAMPLES].cpu().numpy())


def answers(model: EdgeModel, images: ImageSet) -> NDArray[np.float32]:
    """The logits of an engine for these images."""
    return model.predict(_pad(as_float(images.test.images[:SAMPLES]).cpu().numpy()))


def ends(source: Path) -> tuple[triton.Tensor, triton.Tensor]:
    """Input and output of a graph, without the batch."""
    body = graph.load(source).graph
    entry, result = (describe(value) for value in (body.input[0], body.output[0]))
    return _tensor(entry), _tensor(result)


def input_of(source: Path) -> dict[str, Any]:
    """What a float graph takes, as a manifest says it."""
    entry, _ = ends(source)
    box = {"low": 0.0, "high": 1.0}
    return {"name": entry.name, "type": entry.type, "layout": "NCHW", "shape": [*entry.dims], **box}


def scripts() -> dict[str, Path]:
    """Name in the bundle -> source of what runs on the device."""
    found = {name: find_spec(module) for name, module in _SCRIPTS.items()}
    return {name: Path(str(spec.origin)) for name, spec in found.items() if spec is not None}


def _replay(context: Context, verified: Verdicts, engines: Mapping[str, EdgeModel]) -> Replay:
    recording: Recording = load_recording(context["verify"].file(RECORDING))
    return Replay(
        recording,
        recording.protocol(verified.protocol),
        clean={name: engine.predict(recording.pixels) for name, engine in engines.items()},
        adversarial={
            name: engine.predict(recording.adversarial) for name, engine in engines.items()
        },
    )


def _expected(verified: Verdicts, replay: Replay) -> bytes:
    """The verdicts of the engine that ships on the replay: what a device is held against."""
    logits = replay.clean[GATED], replay.adversarial[GATED]
    correct = replay.recording.survived(*logits)
    return Verdicts(dict(replay.protocol), verified.artefact, correct).to_json()


def _served(name: str, folder: Path) -> list[triton.Model]:
    """For Triton: on CPUs at once, and on a GPU when its engine is built there."""
    files = {name: (folder / X86, folder / X86), f"{name}-tensorrt": (Path(ENGINE), folder / INT8)}
    return [
        triton.Model(served, file, *ends(source), LARGEST_BATCH)
        for served, (file, source) in files.items()
    ]


def _software(report: Mapping[str, Any]) -> dict[str, str]:
    """What the models were made and measured with."""
    latency, environment = report["engines"][0]["latency"], report["environment"]
    return {
        "advprune": version("advprune"),
        "python": environment["python"],
        "torch": environment["torch"],
        latency["runtime"]: latency["version"],
    }


def _report(context: Context) -> dict[str, Any]:
    return json.loads(context["report"].read("report.json"))


def _tensor(end: Mapping[str, Any]) -> triton.Tensor:
    return triton.Tensor(end["name"], end["type"], tuple(end["shape"][1:]))


def _pad(images: NDArray) -> NDArray:
    """Sixteen images also where the test split has fewer: they begin again."""
    return images[np.arange(SAMPLES) % len(images)]
