"""Is this device's engine still the one that was measured? The bundle checks itself, here.

    python edge_verify.py

It checks every byte of the bundle, runs its 8-bit model, compares the answers with those that were
stored, replays the stored adversarial images (a replay needs no gradients), takes the time, and
writes `edge.json` and the verdicts `edge.int8.json` for the gate into `NAME.edge` beside the bundle
NAME. It is one file, longer than others, because it travels by itself and must import nothing of
the project: Python 3.8, numpy, and TensorRT or onnxruntime are all that it finds on a device.

Exit codes: 0 the same model; 10 another function than was measured; 2 usage; 65 the bundle is not
as it was shipped; 66 there is none; 69 no runtime; 73 or 74 the results cannot be written; 78 the
runtime here does not take the model.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # A file beside the script must not pass for a module, and a bundle gets no __pycache__.
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        del sys.path[0]
    sys.dont_write_bytecode = True

import argparse
import base64
import ctypes
import hashlib
import importlib
import importlib.abc
import importlib.util
import io
import json
import math
import os
import platform
import re
import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Mapping, NamedTuple, Sequence

try:
    import numpy as np
except ImportError as missing:
    sys.stderr.write(f"numpy cannot be imported ({missing}); type: pip install numpy\n")
    raise SystemExit(69) from missing

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUMS, MANIFEST, SIGNATURE = "SHA256SUMS", "manifest.json", "manifest.json.sig"
BUILDER, VERDICTS, BASELINE = "build_engine.py", "edge.int8.json", "verdicts.int8.json"
# Of the largest logit: another processor may round an activation the other way.
TOLERANCE = 0.02
# Of images on which the same class must win; what falls below computes another function.
AGREEMENT, GOOD_AGREEMENT = 0.98, 0.995
GOLDEN, BATCH, WARM_UP, FEWEST_BATCHES, LARGEST = 16, 128, 50, 3, 2**31
INCOMPATIBLE = 78
_CPU = "CPUExecutionProvider"
_NON_BLOCKING = 1  # of cuda.h: a stream that does not wait for the default one
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_SUM = re.compile(rf"([0-9a-f]{{64}})  ({_PART}(?:/{_PART})*)")
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


class Refused(Exception):
    """A refusal told in one line, with the exit code that the script ends with."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def _tampered(what: str) -> Refused:
    return Refused(f"{what}; fetch the bundle again", 65)


# The bundle, of which no byte is believed before it was checked.


class Files(NamedTuple):
    """The files of a folder and the digests that they had when it was shipped."""

    folder: Path
    digests: Mapping[str, str]

    def read(self, name: str) -> bytes:
        """What is in a file: the very bytes whose digest holds.

        Raises:
            Refused: 65, it is no plain file, not listed, or changed.
        """
        path = self.folder / name
        content = path.read_bytes() if _is_plain(path) else b""
        if hashlib.sha256(content).hexdigest() != self.digests.get(name):
            raise _tampered(f"{path}: not the file that was shipped")
        return content


def check_files(folder: Path) -> Files:
    """Exactly the files of SHA256SUMS, each of them plain and with its digest.

    Raises:
        Refused: 65, a file is missing, more, changed or no plain file; 66, there is no bundle.
    """
    sums = folder / SUMS
    if not _is_plain(sums):
        raise Refused(f"{folder}: no bundle, it has no {SUMS}; give --bundle FOLDER", 66)
    lines = sums.read_bytes().decode("ascii", "replace").split("\n")
    digests = {match[2]: match[1] for match in map(_SUM.fullmatch, lines) if match}
    if lines[-1] or len(digests) < len(lines) - 1:
        raise _tampered(f"{sums}: not digests and names, each once")
    folders = {str(parent) for name in digests for parent in PurePosixPath(name).parents}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")} - folders
    stray = set(digests) ^ (found - {SUMS, SIGNATURE})
    special = {name for name in found if not _is_plain(folder / name)}
    if stray or special:
        names = ", ".join(sorted(stray.union(special)))
        raise _tampered(f"{folder}: {names} missing, no plain file, or not listed in {SUMS}")
    files = Files(folder, digests)
    for name in sorted(digests):
        files.read(name)
    return files


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


class Bundle:
    """What a bundle says.

    Attributes:
        files: checked.
        manifest: of schema 2.
        classes: their number, K.
        labels: int64 (N,).
        images: float32 (., C, H, W) in [0, 1]: 16 "golden" ones, N "clean" ones with `labels`, and
            under "replay" the same N attacked.
        logits: by model, float32 (., K) that it gave to each kind of images.
    """

    def __init__(self, files: Files) -> None:
        """Raises Refused 65: it is not a bundle of this schema."""
        self.files = files
        try:
            self._parse()
        except _MALFORMED as error:
            raise _tampered(f"{files.folder}: not a bundle of schema 2 ({error!r})") from error

    def _parse(self) -> None:
        """Raises one of _MALFORMED: it is not what was written."""
        files = self.files
        manifest = self.manifest = _json(files.read(MANIFEST))
        _demand(manifest["schema"] == 2, f"schema {manifest['schema']}")
        listed = {name: file["sha256"] for name, file in manifest["files"].items()}
        own = {MANIFEST: files.digests.get(MANIFEST)}
        _demand({**listed, **own} == files.digests, f"{MANIFEST} and {SUMS} disagree")
        entry, attacks = manifest["input"], manifest["protocol"]["attacks"]
        form = [entry[key] for key in ("type", "layout", "low", "high")]
        _demand(form == ["float32", "NCHW", 0, 1], f"images of {form}")
        _demand([attack["name"] for attack in attacks] == ["replay"], f"attacks {attacks}")
        self.classes = len(files.read(manifest["labels"]).decode("utf-8").splitlines())
        golden, replay = (_arrays(files.read(manifest[key])) for key in ("golden", "replay"))
        self.labels = replay["labels"]
        count, shape = len(self.labels), tuple(entry["shape"])
        _check(self.labels, np.int64, (count,), 0, self.classes - 1)
        _check(golden["images"], np.uint8, (GOLDEN, *shape))
        _check(replay["clean"], np.uint8, (count, *shape))
        _check(replay["adversarial"], np.float32, (count, *shape), 0, 1)
        self.images = {
            "golden": golden["images"] / np.float32(255),
            "clean": replay["clean"] / np.float32(255),
            "replay": replay["adversarial"],
        }
        self.logits = {
            name: {
                "golden": golden[f"logits_{name}"],
                "clean": replay[f"clean_logits_{name}"],
                "replay": replay[f"adversarial_logits_{name}"],
            }
            for name in manifest["models"]
        }
        for logits in self.logits.values():
            for kind, value in logits.items():
                _check(value, np.float32, (len(self.images[kind]), self.classes))

    def model(self, name: str) -> tuple[str, bytes]:
        """The file of a model and what is in it; raises Refused 65, there is none."""
        if name not in self.manifest["models"]:
            raise _tampered(f"{self.files.folder}: has no model {name!r}")
        file = self.manifest["models"][name]
        return file, self.files.read(file)


def _json(content: bytes) -> Any:
    """Raises ValueError: no JSON, or a key comes twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _demand(len(dict(pairs)) == len(pairs), "a key comes twice")
        return dict(pairs)

    return json.loads(content, object_pairs_hook=unique)


def _arrays(content: bytes) -> dict[str, Any]:
    """Raises ValueError: no arrays, or larger ones than any bundle holds."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            _demand(sum(entry.file_size for entry in archive.zip.infolist()) <= LARGEST, "size")
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # a broken file makes numpy and zipfile fail in their own ways
        raise ValueError(f"no arrays ({error!r})") from error


def _check(
    array: NDArray[Any],
    kind: type,
    shape: tuple[int, ...],
    low: float = -math.inf,
    high: float = math.inf,
) -> None:
    """Raises ValueError: another type or shape, empty, not finite, or out of range."""
    fits = array.dtype == kind and array.shape == shape and array.size > 0
    _demand(fits, f"{array.dtype} {array.shape} where {kind.__name__} {shape} should be")
    # Finite first: NaN compares as neither less nor more.
    sound = np.isfinite(array).all() and array.min() >= low and array.max() <= high
    _demand(bool(sound), f"values not finite or outside [{low}, {high}]")


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


# The engines.


class Engine:
    """One file that turns images into logits.

    Attributes:
        model: its name in the bundle.
        file: its name on disk.
        sha256, size: of that file, in hex and in bytes.
        largest: batch that `run` takes.
    """

    largest = BATCH

    def __init__(self, model: str, file: str, content: bytes) -> None:
        self.model, self.file, self.size = model, file, len(content)
        self.sha256 = hashlib.sha256(content).hexdigest()

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of one batch."""
        raise NotImplementedError

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, K) of float32 images (N, C, H, W) in [0, 1].

        Raises:
            Refused: 65, a logit is not finite.
        """
        starts = range(0, len(images), self.largest)
        logits = np.concatenate([self.run(images[i : i + self.largest]) for i in starts])
        if not np.isfinite(logits).all():
            raise Refused(f"{self.file}: gave logits that are not finite; it is broken here", 65)
        return logits


class OrtEngine(Engine):
    """An ONNX file in ONNX Runtime on the CPU."""

    def __init__(self, ort: Any, model: str, bundle: Bundle, threads: int) -> None:
        """Raises Refused 78: onnxruntime does not take it, or runs it elsewhere."""
        file, content = bundle.model(model)
        super().__init__(model, file, content)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4  # what is wrong comes back as an exception
        # Or the integer kernels of x86 without VNNI saturate.
        options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self._session = ort.InferenceSession(content, options, providers=[_CPU])
        except Exception as error:  # its exceptions have no base of their own
            what = f"does not take it ({str(error).splitlines()[0]}); upgrade it"
            raise Refused(f"{file}: onnxruntime {ort.__version__} {what}", INCOMPATIBLE) from error
        runs = self._session.get_providers()
        if runs != [_CPU]:
            what = f"asked for {_CPU}, {', '.join(runs)} runs it"
            raise Refused(f"{file}: {what}; type: pip install onnxruntime", INCOMPATIBLE)
        entry, shape = self._session.get_inputs()[0], bundle.images["golden"].shape[1:]
        if (entry.type, *entry.shape[1:]) != ("tensor(float)", *shape):
            raise Refused(
                f"{file}: takes {entry.type} {entry.shape}, not images {shape}", INCOMPATIBLE
            )
        self._input = entry.name

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self._session.run(None, {self._input: images})[0])


class TensorRtEngine(Engine):
    """A TensorRT engine with an execution context, and buffers for its largest batch."""

    def __init__(self, tool: Any, gpu: Any, built: Any, bundle: Bundle) -> None:
        """Open an engine.

        Args:
            tool: `TensorRt` of the builder.
            gpu: its `Driver`.
            built: its `Built`, whose card was found to fit.

        Raises:
            Refused: 78, it takes or gives something else than the bundle says.
            The builder's Refused: TensorRT or the GPU does not do it.
        """
        super().__init__("int8-tensorrt", built.path.name, built.plan)
        self._tool, self._gpu = tool, gpu
        # TensorRT needs the runtime and the engine for as long as there is a context.
        host_code = built.card["version_compatible"]
        self._runtime, self._engine = tool.open(built.plan, host_code=host_code)
        engine, modes = self._engine, tool.trt.TensorIOMode
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        ends = {engine.get_tensor_mode(name): name for name in names}
        found = {mode: list(engine.get_tensor_shape(name)) for mode, name in ends.items()}
        shape, self._classes = bundle.images["golden"].shape[1:], bundle.classes
        wanted = {modes.INPUT: [-1, *shape], modes.OUTPUT: [-1, self._classes]}
        kinds = [engine.get_tensor_dtype(name) for name in names]
        # Buffers are as large as the bundle says: another engine would write past them.
        if found != wanted or kinds != [tool.trt.DataType.FLOAT] * 2:
            raise Refused(
                f"{self.file}: has {found} {kinds}, not float {wanted}; remove it", INCOMPATIBLE
            )
        self._name = ends[modes.INPUT]
        self.largest = engine.get_tensor_profile_shape(self._name, 0)[2][0]
        self._context = engine.create_execution_context()
        if self._context is None:
            raise tool.refusal("has no room for an execution context")
        self._stream = ctypes.c_void_p()
        gpu.call("cuStreamCreate", ctypes.byref(self._stream), _NON_BLOCKING)
        self._in = self._buffer(self._name, int(np.prod(shape)))
        self._out = self._buffer(ends[modes.OUTPUT], self._classes)

    def _buffer(self, name: str, floats: int) -> ctypes.c_uint64:
        """Memory on the GPU for the largest batch of an end, which the engine is told."""
        address, size = ctypes.c_uint64(), self.largest * floats * np.dtype(np.float32).itemsize
        self._gpu.call("cuMemAlloc_v2", ctypes.byref(address), size)
        if not self._context.set_tensor_address(name, address.value):
            raise self._tool.refusal(f"takes no address for {name!r}")
        return address

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        feed, call = np.ascontiguousarray(images), self._gpu.call
        logits = np.empty((len(feed), self._classes), np.float32)
        if not self._context.set_input_shape(self._name, feed.shape):
            raise self._tool.refusal(f"refuses a batch of {feed.shape}")
        call("cuMemcpyHtoDAsync_v2", self._in, feed.ctypes.data, feed.nbytes, self._stream)
        started = self._context.execute_async_v3(self._stream.value)
        if started:
            call("cuMemcpyDtoHAsync_v2", logits.ctypes.data, self._out, logits.nbytes, self._stream)
        # Also where it did not start: the array must outlive its copy.
        call("cuStreamSynchronize", self._stream)
        if not started:
            raise self._tool.refusal("does not execute it")
        return logits


class Opened(NamedTuple):
    """The engines by precision, where they run, and why there."""

    engines: dict[str, Engine]
    runtime: str
    where: str
    why: str


def open_engines(asked: str, threads: int, bundle: Bundle, build: Any, out: Path) -> Opened:
    """TensorRT's engine where it runs, else the graphs that onnxruntime is fast with.

    Raises:
        Refused or build.Refused: 69, what was asked for is not here; 78, it does not take a model.
    """
    why = "asked for"
    if asked != "ort":
        try:
            gpu, tool = build.Driver(), build.TensorRt(str(out / "model.plan"))
        except build.Refused as error:
            if asked == "tensorrt":
                raise
            why = f"no TensorRT: {error}"
        else:
            built, why = _built_here(tool, gpu, bundle, build, out)
            engine = TensorRtEngine(tool, gpu, built, bundle)
            where = f"{gpu.name}, TensorRT {tool.version}"
            return Opened({"int8": engine}, "tensorrt", where, why)
    try:
        ort = importlib.import_module("onnxruntime")
    except (ImportError, OSError) as error:
        what = f"onnxruntime cannot be imported ({error}); type: pip install onnxruntime"
        raise Refused(f"{what} ({why})", 69) from error
    # One 8-bit function in two forms: x86 is fast with its own one only, if it is known there.
    forms = ["int8-tensorrt"]
    if platform.machine() in ("x86_64", "AMD64"):
        forms.insert(0, "int8")
    engines: dict[str, Engine] = {}
    for precision, names in ("int8", forms), ("fp32", ["fp32"]):
        for name in names:
            try:
                engines[precision] = OrtEngine(ort, name, bundle, threads)
                break
            except Refused as error:
                if error.exit_code != INCOMPATIBLE or name == names[-1]:
                    raise
                why = f"{why}; the slower form of 8 bits: {error}"
    where = f"{build.this_platform()}, onnxruntime {ort.__version__}, {threads} thread(s)"
    return Opened(engines, "onnxruntime", where, why)


def _built_here(tool: Any, gpu: Any, bundle: Bundle, build: Any, out: Path) -> tuple[Any, str]:
    """The engine in a folder, built first unless there is one for this graph and this device."""
    file, onnx = bundle.model("int8-tensorrt")
    plan = out / "model.plan"
    try:
        content, sealed = plan.read_bytes(), build.beside(plan, ".json").read_bytes()
        card = _json(sealed)
        card.pop("sha256_of_the_above", None)
        _demand(build.seal(card) == sealed, "its card was changed")
        # Opening an engine executes it, so first its card must say that it is the one to open.
        own = build.identity(content, onnx, tensorrt=tool.version, gpu=gpu)
        for key, value in own.items():
            _demand(card[key] == value, f"its {key} is {card[key]!r}, here {value!r}")
        _demand(type(card["version_compatible"]) is bool, "it does not say whether to trust it")
    except (OSError, *_MALFORMED) as misfit:
        built = build.build(bundle.files.folder / file, out, build.BuildOptions(BATCH), gpu)
        return built, f"built its engine now, as there was no fitting one ({misfit})"
    return build.Built(plan, content, card), "its engine was built here before"


# What is measured.


class Findings(NamedTuple):
    """What one engine did: a record of it, what it got right, and what is wrong with it."""

    record: dict[str, Any]
    right: dict[str, NDArray[np.bool_]]
    failures: list[str]
    warnings: list[str]


def examine(engine: Engine, bundle: Bundle) -> Findings:
    """Hold an engine against the logits that were stored, and count what it gets right.

    Raises:
        Refused: 65, its logits are of another shape, or not finite.
    """
    expected, name = bundle.logits[engine.model], engine.file
    given = {kind: engine.predict(images) for kind, images in bundle.images.items()}
    if any(given[kind].shape != expected[kind].shape for kind in given):
        raise _tampered(f"{name}: gives logits of another shape than the bundle has")
    failures, warnings = [], []
    gap = float(np.abs(given["golden"] - expected["golden"]).max())
    allowed = TOLERANCE * float(np.abs(expected["golden"]).max())
    if gap > allowed:
        failures.append(f"{name}: golden logits are off by {gap:.3g}, above {allowed:.3g}")
    here = {kind: logits.argmax(1) for kind, logits in given.items()}
    there = {kind: logits.argmax(1) for kind, logits in expected.items()}
    agreement = {kind: float((here[kind] == there[kind]).mean()) for kind in here}
    if agreement.pop("golden") < 1:
        failures.append(f"{name}: another class wins on a golden image")
    for kind, share in agreement.items():
        text = f"{name}: the stored class wins on {100 * share:.2f} % of the {kind} images, below"
        if share < AGREEMENT:
            failures.append(f"{text} {100 * AGREEMENT:g} %: it computes another function")
        elif share < GOOD_AGREEMENT:
            warnings.append(f"{text} {100 * GOOD_AGREEMENT:g} %")
    right, was = _right(here, bundle.labels), _right(there, bundle.labels)
    accuracy = {
        kind: {**share_of(flags), "expected": float(was[kind].mean())}
        for kind, flags in right.items()
    }
    record = {
        "model": engine.model,
        "file": name,
        "sha256": engine.sha256,
        "bytes": engine.size,
        "golden": {"gap": gap, "allowed": allowed},
        "agreement": agreement,
        "accuracy": accuracy,
    }
    return Findings(record, right, failures, warnings)


def _right(wins: Mapping[str, Any], labels: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """An attacked image counts as right only if the image itself is right too."""
    clean = wins["clean"] == labels
    return {"clean": clean, "replay": clean & (wins["replay"] == labels)}


def share_of(flags: NDArray[np.bool_]) -> dict[str, float]:
    """The share of true flags with its 95 % interval (Clopper and Pearson 1934)."""
    right, count = int(flags.sum()), len(flags)
    low, high = _lower_bound(right, count), 1 - _lower_bound(count - right, count)
    return {"value": right / count, "low": low, "high": high}


def _lower_bound(right: int, count: int) -> float:
    """The share p at which P(X >= right) = 2.5 % for X ~ Binomial(count, p), to 1e-12."""
    if right == 0:
        return 0.0
    hits = np.arange(right, count + 1)
    factorials = np.array([math.lgamma(n + 1) for n in range(count + 1)])
    ways = factorials[count] - factorials[hits] - factorials[count - hits]
    low, high = 0.0, 1.0
    for _ in range(40):
        p = (low + high) / 2
        tail = np.exp(ways + hits * math.log(p) + (count - hits) * math.log1p(-p)).sum()
        low, high = (p, high) if tail < 0.025 else (low, p)
    return high


def latency(
    engines: Mapping[str, Engine], images: NDArray[np.float32], calls: int
) -> dict[str, dict[str, Any]]:
    """Time the engines in turn, call by call, so that what slows the device slows them alike.

    Percentiles are measured values; throughput is that of the median batch.
    """
    batch = np.resize(images, (BATCH, *images.shape[1:]))
    once: dict[str, list[float]] = {name: [] for name in engines}
    whole: dict[str, list[float]] = {name: [] for name in engines}
    for call in range(-WARM_UP, calls):
        at = call % len(images)
        for name, engine in engines.items():
            once[name].append(_milliseconds(engine, images[at : at + 1]))
    for _ in range(1 + max(FEWEST_BATCHES, calls // BATCH)):  # the first warms up
        for name, engine in engines.items():
            whole[name].append(_milliseconds(engine, batch))
    return {
        name: {
            **{f"p{share}_ms": percentile(once[name][WARM_UP:], share) for share in (50, 90, 99)},
            "images_per_second": 1e3 * BATCH / percentile(whole[name][1:], 50),
            "batch": BATCH,
            "samples_ms": once[name][WARM_UP:],
        }
        for name in engines
    }


def _milliseconds(engine: Engine, images: NDArray[np.float32]) -> float:
    start = time.perf_counter_ns()
    engine.predict(images)
    return (time.perf_counter_ns() - start) / 1e6


def percentile(samples: Sequence[float], share: int) -> float:
    """The smallest sample that `share` per cent of all do not exceed."""
    return sorted(samples)[math.ceil(share * len(samples) / 100) - 1]


# What is written and said.


def verdicts(
    bundle: Bundle, opened: Opened, findings: Findings, times: Mapping[str, Any]
) -> dict[str, Any]:
    """The verdict file of the 8-bit engine, schema 3, as `deploy.gate` reads it."""
    engine, protocol = opened.engines["int8"], bundle.manifest["protocol"]
    identity = {"protocol": protocol, "precision": "int8"}
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    worst = np.logical_and.reduce(list(findings.right.values()))
    return {
        "schema": 3,
        "protocol": protocol,
        "protocol_hash": hashlib.sha256(canonical.encode()).hexdigest(),
        "artefact": {"file": engine.file, "sha256": engine.sha256, "precision": "int8"},
        "count": len(bundle.labels),
        "verdicts": {
            name: base64.b64encode(np.packbits(flags).tobytes()).decode()
            for name, flags in {**findings.right, "worst": worst}.items()
        },
        "measured": {
            "bytes": engine.size,
            "compressed_bytes": None,
            "p50_ms": times["int8"]["p50_ms"],
            "p99_ms": times["int8"]["p99_ms"],
            "float_p50_ms": times["fp32"]["p50_ms"] if "fp32" in times else None,
            "where": opened.where,
        },
    }


def verify(options: argparse.Namespace, build: Any, bundle: Bundle) -> dict[str, Any]:
    """Everything; writes `edge.json`, and the verdicts unless the engine is another function.

    Raises:
        Refused or build.Refused: as the script ends.
    """
    out = build.make_folder(options.out, bundle.files.folder)
    # Whatever happens now, verdicts of an earlier engine must not pass for this one's.
    (out / VERDICTS).unlink(missing_ok=True)
    opened = open_engines(options.runtime, options.threads, bundle, build, out)
    found = {name: examine(engine, bundle) for name, engine in opened.engines.items()}
    times = latency(opened.engines, bundle.images["golden"], options.calls)
    record = {
        "schema": 1,
        "bundle": {key: bundle.manifest[key] for key in ("name", "release")},
        "manifest_sha256": bundle.files.digests[MANIFEST],
        "runtime": opened.runtime,
        "where": opened.where,
        "why": opened.why,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load_average": os.getloadavg()[0],
        "images": len(bundle.labels),
        "engines": {name: {**each.record, "latency": times[name]} for name, each in found.items()},
        "failures": [line for each in found.values() for line in each.failures],
        "warnings": [line for each in found.values() for line in each.warnings],
        "out": str(out),
    }
    if not record["failures"]:
        content = verdicts(bundle, opened, found["int8"], times)
        build.write_atomic(out / VERDICTS, build.seal(content))
    build.write_atomic(out / "edge.json", _pretty(record))
    return record


def _pretty(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def table(record: Mapping[str, Any]) -> str:
    """The record as lines for a person."""
    name, release = record["bundle"]["name"], record["bundle"]["release"]
    lines = [
        f"{name}, release {release}, on {record['where']}",
        f"why there: {record['why']}",
        f"{'':6}{'golden gap':>18}{'clean (stored)':>18}{'replay (stored)':>18}"
        f"{'agree':>9}{'p50 ms':>9}{'p90':>8}{'p99':>8}{'images/s':>10}",
    ]
    for precision, engine in record["engines"].items():
        gap, times = engine["golden"], engine["latency"]
        shares = [
            f"{100 * share['value']:.1f} % ({100 * share['expected']:.1f})"
            for share in engine["accuracy"].values()
        ]
        off = f"{gap['gap']:.2g} of {gap['allowed']:.2g}"
        agree = f"{100 * min(engine['agreement'].values()):.1f} %"
        lines.append(
            f"{precision:6}{off:>18}{shares[0]:>18}{shares[1]:>18}{agree:>9}"
            f"{times['p50_ms']:9.3f}{times['p90_ms']:8.3f}{times['p99_ms']:8.3f}"
            f"{times['images_per_second']:10.0f}"
        )
    return "\n".join(lines) + "\n"


class _Checked(importlib.abc.InspectLoader):
    """Imports the very bytes whose digest was checked, and no bytecode from elsewhere."""

    def __init__(self, source: str) -> None:
        self._source = source

    def get_source(self, fullname: str) -> str:
        return self._source


def _import_builder(files: Files) -> Any:
    """The module of `build_engine.py` in a bundle that was checked."""
    name = Path(BUILDER).stem
    spec = importlib.util.spec_from_loader(name, _Checked(files.read(BUILDER).decode("utf-8")))
    assert spec is not None and spec.loader is not None  # both were just given
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where its dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    here = Path(__file__).resolve().parent
    parser.add_argument("--bundle", type=Path, default=here, metavar="FOLDER")
    parser.add_argument("--runtime", choices=("auto", "ort", "tensorrt"), default="auto")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: BUNDLE.edge beside it")
    parser.add_argument("--calls", type=_positive, default=300, help="to be timed (%(default)s)")
    parser.add_argument("--threads", type=_positive, default=1, help="of one call (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print edge.json")
    options = parser.parse_args(arguments)
    try:
        files = check_files(options.bundle.resolve())
        bundle = Bundle(files)
        build = _import_builder(files)
        try:
            record = verify(options, build, bundle)
        except build.Refused as error:
            raise Refused(str(error), error.exit_code) from error
    except Refused as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(_pretty(record).decode() if options.json else table(record))
    for kind in ("warning", "failure"):
        sys.stderr.write("".join(f"{kind}: {line}\n" for line in record[f"{kind}s"]))
    if record["failures"]:
        return 10
    if not options.json:
        edge, baseline = Path(record["out"], VERDICTS), files.folder / BASELINE
        sys.stdout.write(
            f"next, where the project is: python -m deploy.gate {edge} --baseline {baseline}\n"
        )
    return 0


def _positive(text: str) -> int:
    """Raises ValueError, which the parser tells as a wrong argument."""
    number = int(text)
    _demand(number > 0, text)
    return number


if __name__ == "__main__":
    sys.exit(main())
