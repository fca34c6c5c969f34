"""Build a TensorRT engine from the graph of a bundle, on the device that will run it.

    python build_engine.py

An engine is native code for one TensorRT and one GPU, so a bundle ships the graph and this script.
It is one file for Python 3.8, TensorRT 10.3 to 11 and the standard library, because that is what a
device has; `export.to_tensorrt` builds with the same functions. Nothing is written into the bundle.

Exit codes: 0 built; 2 usage; 65 the graph is not the one that was shipped; 66 there is none; 69 no
TensorRT or no GPU; 73 or 74 it cannot be written; 78 TensorRT does not take the graph.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # A file beside the script must not pass for a module, and a bundle gets no __pycache__.
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        del sys.path[0]
    sys.dont_write_bytecode = True

import argparse
import contextlib
import ctypes
import hashlib
import importlib
import json
import os
import platform
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Sequence

CARD_SCHEMA = 2
SUMS = "SHA256SUMS"
LIBCUDA = "libcuda.so.1"
INSTALL = "type: pip install 'tensorrt>=10.3' (on a Jetson, JetPack brings it)"
_NEEDS = "TensorRT needs an NVIDIA GPU and its driver"
# Numbers of cuda.h.
_MAJOR, _MINOR = 75, 76
_INT, _HANDLE = ctypes.c_int, ctypes.c_void_p
_ADDRESS = ctypes.c_uint64
_CALLS = {
    "cuInit": (ctypes.c_uint,),
    "cuGetErrorString": (_INT, ctypes.POINTER(ctypes.c_char_p)),
    "cuDeviceGet": (ctypes.POINTER(_INT), _INT),
    "cuDeviceGetName": (ctypes.c_char_p, _INT, _INT),
    "cuDeviceGetAttribute": (ctypes.POINTER(_INT), _INT, _INT),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(_HANDLE), _INT),
    "cuCtxSetCurrent": (_HANDLE,),
    "cuStreamCreate": (ctypes.POINTER(_HANDLE), ctypes.c_uint),
    "cuStreamSynchronize": (_HANDLE,),
    "cuMemAlloc_v2": (ctypes.POINTER(_ADDRESS), ctypes.c_size_t),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, _HANDLE, ctypes.c_size_t, _HANDLE),
    "cuMemcpyDtoHAsync_v2": (_HANDLE, _ADDRESS, ctypes.c_size_t, _HANDLE),
}


class Refused(Exception):
    """A refusal told in one line, with the exit code that the script ends with."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class BuildOptions:
    """What an engine is built for.

    Attributes:
        max_batch: largest batch that it will take.
        optimal_batch: the batch that its kernels are chosen for.
        version_compatible: also runs on later TensorRT of the same major version; the engine then
            carries a runtime of its own, may be slower, and is trusted with host code.
        hardware_compatible: also runs on other GPUs from Ampere on; may be slower.
    """

    max_batch: int
    optimal_batch: int = 1
    version_compatible: bool = False
    hardware_compatible: bool = False

    def check(self) -> None:
        """Raises Refused 78 unless 1 <= optimal_batch <= max_batch."""
        if not 1 <= self.optimal_batch <= self.max_batch:
            raise Refused(
                "tensorrt: need 1 <= optimal_batch <= max_batch, got optimal_batch "
                f"{self.optimal_batch} and max_batch {self.max_batch}",
                78,
            )


class Driver:
    """The first visible GPU through CUDA's driver library, which is there wherever a GPU works.

    Its primary context, which TensorRT uses too, becomes current in this thread. What is allocated
    stays until the process ends.

    Attributes:
        name: of the GPU.
        compute_capability: "8.7", say.
    """

    def __init__(self) -> None:
        """Raises Refused 69: there is no driver, or no GPU."""
        try:
            self._library = ctypes.CDLL(LIBCUDA)
        except OSError as error:
            raise Refused(f"gpu: {error}; {_NEEDS}", 69) from error
        for name, kinds in _CALLS.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = kinds, _INT
        device, context, title = _INT(), _HANDLE(), ctypes.create_string_buffer(256)
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDeviceGetName", title, len(title), device)
        self.name = title.value.decode()
        major, minor = _INT(), _INT()
        self.call("cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, device)
        self.call("cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, device)
        self.compute_capability = f"{major.value}.{minor.value}"
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of `_CALLS`.

        Raises:
            Refused: 69, with CUDA's own words.
        """
        error = getattr(self._library, name)(*arguments)
        if error:
            text = ctypes.c_char_p()
            # It fails itself where it does not know the error, and leaves the text empty.
            self._library.cuGetErrorString(error, ctypes.byref(text))
            reason = text.value.decode() if text.value else f"error {error}"
            raise Refused(f"gpu: {name} failed ({reason}); {_NEEDS}", 69)


class TensorRt:
    """TensorRT as a package, and what it logs; `origin` is the file that messages are about."""

    def __init__(self, origin: str) -> None:
        """Raises Refused 69: it cannot be imported."""
        try:
            self.trt: Any = importlib.import_module("tensorrt")
        except (ImportError, OSError) as error:
            raise Refused(f"tensorrt cannot be imported ({error}); {INSTALL}", 69) from error
        self.version: str = self.trt.__version__
        self.origin = origin
        self.logger, self._messages = _logger(self.trt)

    def builder(self) -> Any:
        """Raises Refused 69: it does not start without a GPU."""
        try:
            return self.trt.Builder(self.logger)
        except (TypeError, RuntimeError) as error:
            raise Refused(
                f"TensorRT {self.version} cannot build here ({self.reason() or error}); "
                f"it needs an NVIDIA GPU, its driver and libnvinfer: {INSTALL}",
                69,
            ) from error

    def parse(self, builder: Any, onnx: bytes) -> Any:
        """The network of a graph.

        Raises:
            Refused: 78, TensorRT does not read it.
        """
        # The flag's value differs between 10 and 11, and 11 types every network strongly.
        flag = self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        network = builder.create_network(1 << int(flag))
        parser = self.trt.OnnxParser(network, self.logger)
        if not parser.parse(onnx):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            reasons = "; ".join(
                f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors
            )
            raise self.refusal("cannot read it", reasons)
        return network

    def build(
        self,
        builder: Any,
        network: Any,
        shape: Sequence[int],
        options: BuildOptions,
        timings: bytes,
        *,
        sparse: bool,
    ) -> tuple[bytes, bytes]:
        """An engine for batches of 1 to `options.max_batch`, and the timings of its kernels.

        TF32 is off, so that float layers agree with ONNX Runtime.

        Args:
            shape: of one image as the graph takes it.
            timings: of an earlier build, which make this one fast and alike; or none.
            sparse: try 2:4 sparse kernels for weights that have the pattern.

        Raises:
            Refused: 78, TensorRT finds no kernels for it, or other images.
        """
        config = builder.create_builder_config()
        config.clear_flag(self.trt.BuilderFlag.TF32)
        # Without it the inspector knows names only, and "int8" would be taken on trust.
        config.profiling_verbosity = self.trt.ProfilingVerbosity.DETAILED
        if options.version_compatible:
            config.set_flag(self.trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            level = self.trt.HardwareCompatibilityLevel.AMPERE_PLUS
            config.hardware_compatibility_level = level
        if sparse:
            config.set_flag(self.trt.BuilderFlag.SPARSE_WEIGHTS)
        profile = builder.create_optimization_profile()
        batches = (1, options.optimal_batch, options.max_batch)
        shapes = [(batch, *shape) for batch in batches]
        profile.set_shape(network.get_input(0).name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise Refused(f"tensorrt: images of {shape} do not fit the graph's input", 78)
        # Timings of another GPU or version are refused; then all kernels are timed afresh.
        if not config.set_timing_cache(config.create_timing_cache(timings), False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise self.refusal("built nothing")
        return bytes(engine), bytes(config.get_timing_cache().serialize())

    def open(self, plan: bytes, *, host_code: bool) -> tuple[Any, Any]:
        """A runtime and the engine in it; the second needs the first for as long as it lives.

        Opening executes native code from the plan: give only one that was built here.

        Args:
            host_code: the engine brings a runtime along, as a version-compatible one does.

        Raises:
            Refused: 69, TensorRT does not start; 78, it does not open the engine.
        """
        try:
            runtime = self.trt.Runtime(self.logger)
        except (TypeError, RuntimeError) as error:
            reason = self.reason() or error
            raise Refused(
                f"TensorRT {self.version} does not start ({reason}); {_NEEDS}", 69
            ) from error
        if host_code:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self.refusal("does not open what it built")
        return runtime, engine

    def describe(self, name: str, shape: Any, kind: Any) -> dict[str, Any]:
        """An input or output as cards have it: name, shape with -1 for the free batch, type."""
        types = self.trt.DataType
        known = {types.FLOAT: "float32", types.HALF: "float16", types.UINT8: "uint8"}
        return {"name": name, "shape": list(shape), "type": known.get(kind, str(kind))}

    def refusal(self, what: str, reason: str = "") -> Refused:
        """Something that TensorRT does not do, with what it logged of it."""
        reason = reason or self.reason() or "no reason logged"
        return Refused(f"{self.origin}: TensorRT {self.version} {what} ({reason})", 78)

    def reason(self) -> str:
        """What was logged since the last time."""
        reason = "; ".join(self._messages)
        self._messages.clear()
        return reason


def _logger(trt: Any) -> tuple[Any, list[str]]:
    """A logger that keeps errors for our messages instead of printing everything."""
    messages: list[str] = []

    class Errors(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.append(message)

    return Errors(), messages


def make_card(
    plan: bytes, onnx: bytes, *, tensorrt: str, gpu: Any, options: BuildOptions, **graph: Any
) -> dict[str, Any]:
    """What an engine is and which machine it is for; runtimes read it before the engine.

    Args:
        plan: the engine.
        onnx: the file that it was built from.
        tensorrt: version that built it.
        gpu: that it was built on, with `name` and `compute_capability`.
        options: that it was built with.
        graph: `input`, `output` and `precision` at least.
    """
    return {
        **identity(plan, onnx, tensorrt=tensorrt, gpu=gpu),
        "batch": {"min": 1, "optimal": options.optimal_batch, "max": options.max_batch},
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
        **graph,
    }


def identity(plan: bytes, onnx: bytes, *, tensorrt: str, gpu: Any) -> dict[str, Any]:
    """The part of a card that must hold here before its engine is opened here."""
    return {
        "schema": CARD_SCHEMA,
        "sha256": hashlib.sha256(plan).hexdigest(),
        "onnx_sha256": hashlib.sha256(onnx).hexdigest(),
        "tensorrt": tensorrt,
        "gpu": gpu.name,
        "compute_capability": gpu.compute_capability,
        "platform": this_platform(),
    }


def seal(content: dict[str, Any]) -> bytes:
    """JSON that ends in its own digest, as `deploy.sealed` reads it; equal content, equal bytes."""
    above = json.dumps(content, indent=1, allow_nan=False).encode()[: -len("\n}")]
    digest = hashlib.sha256(above).hexdigest()
    return above + f',\n "sha256_of_the_above": "{digest}"\n}}\n'.encode()


def this_platform() -> str:
    """ "linux/aarch64", say."""
    return f"{platform.system()}/{platform.machine()}".lower()


def beside(plan: Path, suffix: str) -> Path:
    """The card, ".json", or the timings, ".timing", of an engine."""
    return plan.with_name(plan.name + suffix)


def stored_timings(plan: Path) -> bytes:
    """What an earlier build of this engine measured; nothing if there was none."""
    path = beside(plan, ".timing")
    return path.read_bytes() if path.exists() else b""


class Built(NamedTuple):
    """An engine: its file, what is in it, and its card."""

    path: Path
    plan: bytes
    card: dict[str, Any]


def build(onnx_path: Path, out: Path, options: BuildOptions, gpu: Driver) -> Built:
    """Build `model.plan` in the folder `out`, with its timings and, last, its card.

    Raises:
        Refused: as the script ends.
    """
    options.check()
    onnx = read_shipped(onnx_path)
    tool = TensorRt(str(onnx_path))
    builder = tool.builder()
    network = tool.parse(builder, onnx)
    if (network.num_inputs, network.num_outputs) != (1, 1):
        raise Refused(f"{onnx_path}: need one input and one output; take a graph of a bundle", 78)
    ends = {"input": network.get_input(0), "output": network.get_output(0)}
    graph: dict[str, Any] = {
        side: tool.describe(tensor.name, tensor.shape, tensor.dtype)
        for side, tensor in ends.items()
    }
    plan_path = out / "model.plan"
    shape, timings = graph["input"]["shape"][1:], stored_timings(plan_path)
    # TensorRT looks for the pattern itself and stays dense where it finds none.
    plan, timings = tool.build(builder, network, shape, options, timings, sparse=True)
    tool.open(plan, host_code=options.version_compatible)
    graph["precision"] = _precision(tool.trt, network)
    card = make_card(plan, onnx, tensorrt=tool.version, gpu=gpu, options=options, **graph)
    write_atomic(plan_path, plan)
    write_atomic(beside(plan_path, ".timing"), timings)
    write_atomic(beside(plan_path, ".json"), seal(card))
    return Built(plan_path, plan, card)


def _precision(trt: Any, network: Any) -> str:
    """What the graph asks for: "int8" if it quantises, else the type of its floats."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    if any(layer.type == trt.LayerType.DEQUANTIZE for layer in layers):
        return "int8"
    halves = any(layer.get_output(0).dtype == trt.DataType.HALF for layer in layers)
    return "fp16" if halves else "fp32"


def read_shipped(path: Path) -> bytes:
    """A file, found to be the one that was shipped if it lies in a bundle.

    Raises:
        Refused: 66, it cannot be read; 65, it is not what SHA256SUMS beside it says.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Refused(f"{path}: cannot be read ({error.strerror}); give --onnx", 66) from error
    sums = path.with_name(SUMS)
    if sums.exists() or path.with_name("manifest.json").exists():
        line = f"{hashlib.sha256(content).hexdigest()}  {path.name}"
        if not sums.is_file() or line not in sums.read_text("ascii", "replace").splitlines():
            raise Refused(f"{path}: not the file of {sums}; fetch the bundle again", 65)
    return content


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file, so that a reader or a crash meets the old one or the new one.

    Raises:
        Refused: 73, nothing can be created there; 74, the write failed (disk full, say).
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        file = draft.open("xb")
    except OSError as error:
        raise _cannot_create(path, error) from error
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise Refused(
            f"{path}: cannot be written ({error.strerror}); free some room", 74
        ) from error
    finally:
        with contextlib.suppress(OSError):  # gone already after a replace
            draft.unlink()


def make_folder(asked: Path | None, bundle: Path) -> Path:
    """The folder for results: by default `NAME.edge` beside a bundle NAME, never within it.

    Raises:
        Refused: 2, it lies in the bundle; 73, it cannot be created.
    """
    bundle = bundle.resolve()
    folder = bundle.with_name(f"{bundle.name}.edge") if asked is None else asked.resolve()
    if (bundle / SUMS).exists() and bundle in (folder, *folder.parents):
        raise Refused(f"{folder}: a bundle stays as it was shipped; give another --out", 2)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_create(folder, error) from error
    if not os.access(folder, os.W_OK):
        raise Refused(f"{folder}: cannot be written to; give --out a folder of your own", 73)
    return folder


def _cannot_create(path: Path, error: OSError) -> Refused:
    reason = f"cannot be created ({error.strerror})"
    return Refused(f"{path}: {reason}; give --out a folder of your own", 73)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    here = Path(__file__).resolve().parent
    parser.add_argument("--onnx", type=Path, default=here / "model.int8.onnx", metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: BUNDLE.edge beside it")
    parser.add_argument("--max-batch", type=int, default=128, help="(%(default)s)")
    parser.add_argument("--optimal-batch", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--version-compatible", action="store_true")
    parser.add_argument("--hardware-compatible", action="store_true")
    given = parser.parse_args(arguments)
    options = BuildOptions(
        given.max_batch, given.optimal_batch, given.version_compatible, given.hardware_compatible
    )
    try:
        gpu = Driver()
        plan = build(given.onnx, make_folder(given.out, given.onnx.parent), options, gpu).path
    except Refused as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(f"{plan}: built on {gpu.name}; next: python edge_verify.py\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
