"""Stage 7: the exported engines are attacked and timed; every later number comes from here."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advprune import ranks
from advprune.data import as_float
from advprune.files import write as write_bytes
from advprune.spans import span
from advprune.twin import differentiable
from deploy.bench import interleaved, sizes
from deploy.recording import save
from deploy.replay import Targets, is_quantised, twin_name
from deploy.runtime import load
from deploy.suites import Settings
from deploy.verdicts import Verdicts, verdict_file, write
from deploy.verify import Verification, accused, contribute, judge
from export.to_onnx import to_onnx
from pipeline.devices import resolve_device
from pipeline.files import write_json
from pipeline.recipe import Recipe
from pipeline.stage import Context, Metrics, Stage
from pipeline.stages.export import engines_for, engines_of
from pipeline.stages.latent import compare
from pipeline.stages.training import images_of, network_of

# Source names of transfer attacks -> the stage whose network they are crafted on.
TWINS = {
    "standard": "standard",
    "adversarial": "adversarial",
    "pruned": "prune",
    "finetuned": "finetune",
}
DENSE = "dense fp32"
WARMUP_S = 0.3
CALLS = 300
FINDINGS = "verification.json"
MEASUREMENTS = "measurements.json"
RECORDING = "recording.npz"
GALLERY = "gallery.npz"


def stage(recipe: Recipe) -> Stage:
    def run(context: Context) -> Metrics:
        if ranks.number():
            targets, _ = _accused(context, settings)
            contribute(targets, settings, context.observer.kept)
            return {}  # what follows is for one alone
        verification = attack(context, settings)
        speed = time_engines(context)
        folder = context["export"].path
        measured = {
            "speed": speed,
            "latent": compare(context, settings) if recipe.pruning_method().shrinks else None,
            "sizes": {name: sizes(file) for name, file in engines_of(folder).items()},
        }
        record(context, verification, context.out, _costs(speed, measured["sizes"]))
        write_json(context.out / MEASUREMENTS, measured)
        shares = {
            f"{engine}_{name}": sum(flags) / len(flags)
            for engine, verdicts in verification.verdicts.items()
            for name, flags in verdicts.items()
            if name in ("clean", "worst")
        }
        return {**shares, "int8_p50_ms": speed["int8"]["p50_ms"]}

    settings = recipe.verify.settings(recipe.seed)
    config = {
        "split": recipe.verify.split,
        "settings": {key: v for key, v in asdict(settings).items() if key != "batch_size"},
        "threat": recipe.threat().to_dict(),
    }
    return Stage("verify", ("data", *TWINS.values(), "export"), config, run, version=6)


def attack(context: Context, settings: Settings) -> Verification:
    """Attack every engine of the run, each file checked against its digest first."""
    targets, digest = _accused(context, settings)
    return judge(targets, digest, settings, context.observer.kept)


def _accused(context: Context, settings: Settings) -> tuple[Targets, str]:
    """What is on trial, and the digest of the images that it is shown some of."""
    images, folder = images_of(context), context["export"].check()
    device = resolve_device(context.recipe.device)
    twins = {source: network_of(context, stage) for source, stage in TWINS.items()}
    engines = {name: load(file) for name, file in engines_of(folder).items()}
    for name, file in engines_of(folder).items():
        if is_quantised(engines[name]):
            twins[twin_name(name)] = differentiable(file.read_bytes(), file.name).to(device)
    split = images.splits[context.recipe.verify.split].first(settings.images)
    targets = accused(twins, engines, split, context.recipe.threat(), settings)
    return targets, images.digest


def record(
    context: Context,
    verification: Verification,
    folder: Path,
    costs: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> None:
    """Write the verdicts of every engine, and what was found beside them, into a folder.

    Args:
        costs: by engine, what `Verdicts.measured` holds, where it was measured.
    """
    exported, gallery = context["export"], verification.gallery
    for name, file in engines_of(exported.path).items():
        artefact = {
            "file": file.name,
            "sha256": exported.manifest["files"][file.name]["sha256"],
            "precision": name,
        }
        correct = {k: v for k, v in verification.verdicts[name].items() if k != "worst"}
        protocol = verification.protocols[name]
        verdicts = Verdicts(
            protocol, artefact, correct, measured=costs.get(name), health=_health(verification)
        )
        write(folder / verdict_file(name), verdicts)
    findings = {
        "indices": verification.indices,
        "transfer": verification.transfer,
        "curve": verification.curve,
        "parity": verification.parity,
        "health": [vars(check) for check in verification.health],
        "gallery": gallery and gallery.said,
    }
    write_json(folder / FINDINGS, findings)
    save(folder / RECORDING, verification.recording)
    if gallery is not None:
        write_bytes(folder / GALLERY, gallery.file())


def _health(verification: Verification) -> dict[str, Any]:
    """What a gate must know of the evaluation: where it is invalid, no verdict decides anything."""
    suspect = [check.id for check in verification.health if check.status == "SUSPECT"]
    return {
        "checks": len(verification.health),
        "invalid": [f"{check.id} {check.what}" for check in verification.invalid],
        "suspect": list(dict.fromkeys(suspect)),
    }


@span("latency")
def time_engines(context: Context) -> dict[str, dict[str, Any]]:
    """Latency and throughput of every engine on test images, one thread, call by call in turn."""
    with files_to_time(context) as files:
        engines = {name: load(file) for name, file in files.items()}
        measured = interleaved(engines, pixels_to_time(context), warmup_s=WARMUP_S, calls=CALLS)
    return {name: _plain(latency) for name, latency in measured.items()}


@contextmanager
def files_to_time(context: Context, runtime: str | None = None) -> Iterator[dict[str, Path]]:
    """Name -> file of every engine for a runtime, each checked against its digest.

    Where channels were removed, the dense network in float is among them for a while, as DENSE.
    """
    files = engines_for(context["export"].check(), runtime)
    with tempfile.TemporaryDirectory() as folder:
        if context.recipe.pruning_method().shrinks and runtime != "tensorrt":
            files[DENSE] = Path(folder, "dense.onnx")
            shape = images_of(context).shape
            to_onnx(network_of(context, "adversarial").cpu(), shape, files[DENSE])
        yield files


def pixels_to_time(context: Context) -> NDArray[np.float32]:
    return as_float(images_of(context).test.images[:64]).cpu().numpy()


def _costs(
    speed: Mapping[str, dict[str, Any]], sizes: Mapping[str, dict[str, int]]
) -> dict[str, dict[str, Any]]:
    """What each engine costs, in the words of a verdict file; all were timed in turn."""
    return {
        name: {
            **size,
            "p50_ms": speed[name]["p50_ms"],
            "p99_ms": speed[name]["p99_ms"],
            "float_p50_ms": speed["fp32"]["p50_ms"],
            "where": _where(speed[name]),
        }
        for name, size in sizes.items()
    }


def _where(speed: Mapping[str, Any]) -> str:
    threads = f"{speed['threads']} thread{'s' if speed['threads'] > 1 else ''}"
    return f"{speed['runtime']} {speed['version']} {speed['device']}, {threads}"


def _plain(latency: Any) -> dict[str, Any]:
    return {**vars(latency), "samples_ms": list(latency.samples_ms)}
