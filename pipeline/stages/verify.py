"""Stage 7: the exported engines are attacked and timed; every later number comes from here."""

import tempfile
from pathlib import Path
from typing import Any

from advprune.data import as_float
from deploy.bench import interleaved, sizes
from deploy.runtime import load
from deploy.verdicts import Verdicts, write
from deploy.verify import Settings, Verification, verify
from export.to_onnx import to_onnx
from pipeline.files import write_json
from pipeline.recipe import Recipe
from pipeline.recipe import Verification as Hardness
from pipeline.stage import Context, Metrics, Stage
from pipeline.stages.export import engines_of
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
RESULTS = "verification.json"


def verdict_file(engine: str) -> str:
    return f"verdicts.{engine}.json"


def stage(recipe: Recipe) -> Stage:
    def run(context: Context) -> Metrics:
        verification = attack(context, context.recipe.verify, context.recipe.seed)
        folder = context["export"].path
        for name, file in engines_of(folder).items():
            artefact = {
                "file": file.name,
                "sha256": context["export"].manifest["files"][file.name]["sha256"],
                "precision": name,
            }
            correct = {k: v for k, v in verification.verdicts[name].items() if k != "worst"}
            write(
                context.out / verdict_file(name),
                Verdicts(verification.protocols[name], artefact, correct),
            )
        speed = time_engines(context)
        results = {
            "transfer": verification.transfer,
            "parity": verification.parity,
            "health": [vars(check) for check in verification.health],
            "speed": speed,
            "latent": compare(context) if recipe.pruning_method().shrinks else None,
            "sizes": {name: sizes(file) for name, file in engines_of(folder).items()},
        }
        write_json(context.out / RESULTS, results)
        shares = {
            f"{engine}_{name}": sum(flags) / len(flags)
            for engine, verdicts in verification.verdicts.items()
            for name, flags in verdicts.items()
            if name in ("clean", "worst")
        }
        return {**shares, "int8_p50_ms": speed["int8"]["p50_ms"]}

    config = {
        "verify": recipe.verify.model_dump(),
        "threat": recipe.threat().to_dict(),
        "seed": recipe.seed,
    }
    return Stage("verify", ("data", *TWINS.values(), "export"), config, run, version=2)


def attack(context: Context, hardness: Hardness, seed: int) -> Verification:
    """Attack every engine of the run, each file checked against its digest first."""
    images = images_of(context)
    twins = {source: network_of(context, stage) for source, stage in TWINS.items()}
    engines = {name: load(file) for name, file in engines_of(context["export"].check()).items()}
    settings = Settings(hardness.steps, hardness.restarts, hardness.queries, seed)
    split = images.splits[context.recipe.verify.split]
    return verify(twins, engines, split, context.recipe.threat(), images.digest, settings)


def time_engines(context: Context) -> dict[str, dict[str, Any]]:
    """Latency and throughput of every engine on test images, one thread, call by call in turn.

    Where channels were removed, the dense network in float is timed beside them, as DENSE.
    """
    images = images_of(context)
    pixels = as_float(images.test.images[:64]).cpu().numpy()
    engines = {name: load(file) for name, file in engines_of(context["export"].check()).items()}
    with tempfile.TemporaryDirectory() as folder:
        if context.recipe.pruning_method().shrinks:
            dense = Path(folder, "dense.onnx")
            to_onnx(network_of(context, "adversarial").cpu(), images.shape, dense)
            engines[DENSE] = load(dense)
        measured = interleaved(engines, pixels, warmup_s=WARMUP_S, calls=CALLS)
    return {name: _plain(latency) for name, latency in measured.items()}


def _plain(latency: Any) -> dict[str, Any]:
    return {**vars(latency), "samples_ms": list(latency.samples_ms)}
