"""What of a run one kind of device gets: each function writes a folder, completely or not at all.

All but Triton's are bundles, so the device checks them as it checks the bundle of a run.
"""

import shlex
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import NDArray

from advprune.errors import NotFound, Unavailable
from deploy import triton
from deploy.bundle.write import Contents, write_bundle
from deploy.errors import DeployError
from deploy.runtime import EdgeModel, load
from export.engine_card import BuildOptions
from export.to_tensorrt import Built, Skipped
from pipeline.engine import build_here
from pipeline.shipping import answers, ends, facts, input_of, samples_of
from pipeline.stage import Context
from pipeline.stages.export import CAMERA, ENGINE, HALF, OPENVINO, X86
from pipeline.stages.quantize import FLOAT, INT8
from pipeline.stages.training import images_of

# The graph of each precision, in the form that TensorRT takes.
GRAPHS = {"int8": INT8, "fp32": FLOAT, "fp16": HALF}
_UNAVAILABLE = 69


@dataclass(frozen=True)
class Order:
    """What is wanted of a run.

    Attributes:
        folder: to be made.
        precision: a key of `GRAPHS`.
        options: of an engine, where one is built.
        needs_engine: something was asked for that only an engine has.
    """

    context: Context
    folder: Path
    precision: str
    options: BuildOptions
    needs_engine: bool = False

    @property
    def graph(self) -> Path:
        """The file of this precision, found to be what the run recorded.

        Raises:
            NotFound, BadData: see `Artifact.file`.
        """
        exported, name = self.context["export"], GRAPHS[self.precision]
        if name == HALF and name not in exported.manifest["files"]:
            raise NotFound(f"{exported.path}: has no {HALF}; run again with --fp16")
        return exported.file(name)

    @property
    def for_openvino(self) -> Path:
        """The file that OpenVINO does not round otherwise than the others."""
        return self.context["export"].file(OPENVINO) if self.precision == "int8" else self.graph

    @property
    def for_cpus(self) -> dict[str, Path]:
        """Name -> file that ONNX Runtime is fast with, also for cameras if the run has that."""
        if self.precision != "int8":
            return {self.precision: self.graph}
        exported = self.context["export"]
        files = {"int8": exported.file(X86)}
        if CAMERA in exported.manifest["files"]:
            files["int8-camera"] = exported.file(CAMERA)
        return files


@dataclass(frozen=True)
class Delivery:
    """What to type next, and what a user should know."""

    next: str
    notes: Sequence[str] = ()


def ort(order: Order) -> Delivery:
    """ONNX Runtime on a CPU."""
    models = order.for_cpus
    return _bundle(order, models, {name: load(path) for name, path in models.items()})


def openvino(order: Order) -> Delivery:
    """OpenVINO on a CPU; what it must answer is what it answers here, if it is here."""
    name, path, notes = f"{order.precision}-openvino", order.for_openvino, []
    try:
        engine = load(path, runtime="openvino")
    except DeployError as error:
        if error.exit_code != _UNAVAILABLE:
            raise
        engine = load(path)
        notes = [
            f"the expected logits are ONNX Runtime's ({error}), and 8 bits that are rounded the "
            "other way may fail the check: export again where OpenVINO is for logits of its own"
        ]
    return _bundle(order, {name: path}, {name: engine}, notes=notes, runtime="openvino")


def tensorrt(order: Order) -> Delivery:
    """TensorRT on the GPU of this machine.

    Raises:
        Unavailable: there is no TensorRT, or no GPU.
        Incompatible: TensorRT does not take the graph.
    """
    with tempfile.TemporaryDirectory() as scratch:
        built = _build(order, Path(scratch))
        if isinstance(built, Skipped):
            raise _cannot_build(order, built)
        name = f"{order.precision}-tensorrt"
        engines = {name: load(built.path)}
        return _bundle(order, {name: built.path}, engines, beside=[built.card, built.timing_cache])


def serve(order: Order) -> Delivery:
    """Triton: an engine for the GPU of this machine, or else ONNX files for CPUs.

    Raises:
        Unavailable: an engine is needed, and there is no TensorRT, or no GPU.
    """
    name = triton.model_name(order.context.out.resolve().name)
    command, notes = f"tritonserver --model-repository={shlex.quote(str(order.folder))}", []
    with tempfile.TemporaryDirectory() as scratch:
        built = _build(order, Path(scratch))
        if isinstance(built, Built):
            files = {name: (built.path, order.graph)}
            if order.options.version_compatible:
                command += " --backend-config=tensorrt,version-compatible=true"
        elif order.needs_engine:
            raise _cannot_build(order, built)
        else:
            (first, *_) = order.for_cpus.values()
            files = {name: (first, first)}
            notes = [f"it runs on CPUs, as no engine can be built here: {built.reason}"]
        if camera := order.for_cpus.get("int8-camera"):
            files[f"{name}-camera"] = (camera, camera)
        models = [
            triton.Model(served, file, *ends(source), order.options.max_batch)
            for served, (file, source) in files.items()
        ]
        triton.write_repository(order.folder, models, images_of(order.context).classes)
    return Delivery(command, notes)


TARGETS: Mapping[str, Callable[[Order], Delivery]] = {
    "tensorrt": tensorrt,
    "ort": ort,
    "openvino": openvino,
    "triton": serve,
}


def _build(order: Order, scratch: Path) -> Built | Skipped:
    shape = images_of(order.context).shape
    return build_here(order.graph, scratch / ENGINE, shape, order.options)


def _cannot_build(order: Order, skipped: Skipped) -> Unavailable:
    return Unavailable(
        f"{skipped.reason}; or build on the device, from {order.graph}; "
        "--target triton without options of an engine serves it on CPUs"
    )


def _bundle(
    order: Order,
    models: Mapping[str, Path],
    engines: Mapping[str, EdgeModel],
    *,
    notes: Sequence[str] = (),
    beside: Iterable[Path] = (),
    runtime: str | None = None,
) -> Delivery:
    """Write models under names that do not depend on the run, and what engines say of images."""
    images = images_of(order.context)
    logits: dict[str, NDArray] = {name: answers(engine, images) for name, engine in engines.items()}
    by = {engine.info.runtime: engine.info.version for engine in engines.values()}
    metadata = {
        **facts(order.context, order.graph),
        "precision": order.precision,
        "logits_by": ", ".join(" ".join(pair).strip() for pair in by.items()),
    }
    with tempfile.TemporaryDirectory() as scratch:
        links = {name: _link(path, Path(scratch)) for name, path in models.items()}
        contents = Contents(
            name=order.context.recipe.name,
            models=links,
            input=input_of(order.graph),
            labels=images.classes,
            metadata=metadata,
            samples=samples_of(images),
            logits=logits,
            beside={path.name: path for path in beside},
            runtime=runtime,
        )
        write_bundle(order.folder, contents)
    return Delivery(f"advprune bundle verify {shlex.quote(str(order.folder))}", notes)


def _link(path: Path, scratch: Path) -> Path:
    """The file as the device knows it: `model.onnx`, say, in every precision."""
    stem = "model.camera" if path.name == CAMERA else "model"
    link = scratch / f"{stem}{path.suffix}"
    link.symlink_to(path.resolve())
    return link
