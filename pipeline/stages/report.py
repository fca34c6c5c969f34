"""Stage 9: what came out, in one JSON document, one page and one Markdown file."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advprune.data import class_names
from advprune.files import write
from advprune.masks import counts, load_masks, sparsity_of
from advprune.models.checkpoint import load
from deploy.recording import arrays_of
from deploy.report import SCHEMA, render_markdown
from deploy.report_page import render_html
from deploy.statistics import share
from deploy.verdicts import read, verdict_file
from pipeline.files import write_json
from pipeline.recipe import Recipe
from pipeline.stage import Artifact, Context, Metrics, Stage
from pipeline.stages.data import SKIPPED
from pipeline.stages.finetune import STRUCTURE
from pipeline.stages.verify import DENSE, FINDINGS, GALLERY, MEASUREMENTS

_NEEDS = (
    "data",
    "standard",
    "adversarial",
    "prune",
    "finetune",
    "quantize",
    "export",
    "verify",
    "gate",
)
_TOY = "toy data, not a benchmark: 8 x 8 digits show that the way works, not how a method ranks"
_SEEN = "measured on the training images: compare with other such runs alone"
_QUANTISATION = {
    "ptq": "8 bits by calibration alone",
    "qat": "8 bits by robust training through the rounding",
}
_TRAINED = ("standard", "adversarial", "prune", "finetune", "quantize")
_DENSE = (
    "zeros scattered in dense kernels make the download smaller, not the engine faster: "
    "only 8 bits can do that"
)


def stage(recipe: Recipe) -> Stage:
    def run(context: Context) -> Metrics:
        report = assemble(context.recipe, context.inputs, context.run)
        images = arrays_of(context["verify"].file(GALLERY))
        page = render_html(report, images["clean"], images["adversarial"])
        write_json(context.out / "report.json", report)
        write(context.out / "report.html", page.encode())
        write(context.out / "report.md", render_markdown(report).encode())
        return {}

    return Stage("report", _NEEDS, {"recipe": recipe.identity()}, run, version=2)


def assemble(recipe: Recipe, artifacts: Mapping[str, Artifact], run: Path) -> dict[str, Any]:
    """The report: every number measured on a file that ships, each with where it came from.

    Args:
        run: the folder in which the finished run will be found.
    """
    results = {
        key: value
        for file in (FINDINGS, MEASUREMENTS)
        for key, value in json.loads(artifacts["verify"].read(file)).items()
    }
    gate = json.loads(artifacts["gate"].read("gate.json"))
    masks = load_masks(artifacts["prune"].file("masks.safetensors"))
    found = counts(masks)
    layers = [
        {"name": name, "kept": found[name][0], "total": found[name][1]}
        # In the order of the network: files of weights have none.
        for name in load(artifacts["prune"].check()).state_dict()
        if name in found
    ]
    engines = [_engine(name, artifacts["verify"], results) for name in results["sizes"]]
    exported, quantised = artifacts["export"].metrics, artifacts["quantize"].metrics
    shrinks = recipe.pruning_method().shrinks
    environment = artifacts["verify"].manifest["environment"]
    return {
        "schema": SCHEMA,
        "title": recipe.title(environment["device"]),
        "verdict": {"status": gate["status"], "lines": gate["lines"]},
        "command": _command(run),
        "recipe": recipe.identity(),
        "environment": environment,
        "stages": [_stage(name, artifacts[name]) for name in _NEEDS],
        "sparsity": {
            "asked": artifacts["prune"].metrics["asked"],
            "got": sparsity_of(masks),
            "kept": sum(layer["kept"] for layer in layers),
            "total": sum(layer["total"] for layer in layers),
            "layers": layers,
        },
        "structure": _structure(artifacts["finetune"], results),
        "engines": engines,
        "transfer": results["transfer"],
        "parity": results["parity"]["int8"],
        "health": results["health"],
        "gate": gate,
        "threat": recipe.threat().to_dict(),
        "images": len(results["indices"]),
        "curve": {
            **results["curve"],
            "engines": {
                name: {key: value for key, value in curve.items() if key != "distances"}
                for name, curve in results["curve"]["engines"].items()
            },
        },
        "gallery": _named(results["gallery"], class_names(artifacts["data"].check())),
        "caveats": [
            *([_TOY] if recipe.data == "digits" else []),
            *([_DENSE] if sparsity_of(masks) > 0 and not shrinks else []),
            *([_SEEN] if recipe.verify.split == "train" else []),
            *filter(None, [str(artifacts["standard"].metrics.get("began", ""))]),
            *notes_on_data(recipe, artifacts["data"].metrics),
            *filter(None, [str(quantised["calibration_doubts"])]),
        ],
        "notes": [
            _QUANTISATION[str(quantised["quantisation"])],
            f"int8 operators that run: {exported['fused_operators']}",
            f"TensorRT engine: {exported['tensorrt']}",
            *filter(None, [str(quantised.get("no_training", ""))]),
            *_frozen(artifacts["standard"].metrics),
            *_made_otherwise(artifacts),
        ],
    }


def _command(run: Path) -> str:
    """What to type, from where the run was started, to have it again."""
    words = ["advprune", "run", "--recipe", str(run / "recipe.toml")]
    return shlex.join(words + ([] if run.parent == Path("runs") else ["--runs", str(run.parent)]))


def _frozen(standard: Metrics) -> list[str]:
    names = standard.get("frozen_layers")
    return [f"frozen, and not counted by sparsity: {names}"] if names else []


def _made_otherwise(artifacts: Mapping[str, Artifact]) -> list[str]:
    """The stages that other code or another machine made than the one that measured."""
    here = artifacts["verify"].manifest["environment"]
    made: dict[str, list[str]] = {}
    for name in _NEEDS:
        there = artifacts[name].manifest["environment"]
        for key in sorted(here.keys() | there.keys()):
            if here.get(key) != there.get(key):
                made.setdefault(f"{key} {there.get(key, 'not known')}", []).append(name)
    together: dict[str, list[str]] = {}
    for what, stages in made.items():
        together.setdefault(", ".join(stages), []).append(what)
    return [f"made with {', '.join(what)}: {stages}" for stages, what in together.items()]


def _named(gallery: Mapping[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    """What the gallery says, with classes by their names."""
    items = [
        {
            **item,
            "label": classes[item["label"]],
            **{kind: [classes[i] for i in item[kind]] for kind in ("clean", "attacked")},
        }
        for item in gallery["items"]
    ]
    return {**gallery, "items": items}


def notes_on_data(recipe: Recipe, loaded: Metrics) -> list[str]:
    """What was left out of the images, and where they are fewer than a batch."""
    skipped, train = loaded.get("skipped"), int(loaded["train"])
    wide = [
        f"{stage}.batch_size {size} is more than the {train} training images: one batch an epoch"
        for stage in _TRAINED
        if (size := getattr(recipe, stage).batch_size) > train and getattr(recipe, stage).epochs
    ]
    left = f"{skipped} damaged images were left out (--skip-bad): {SKIPPED} beside the data"
    return [*([left] if skipped else []), *wide]


def _structure(finetuned: Artifact, results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Widths before and after, and the dense network's speed; None where no channels went."""
    if STRUCTURE not in finetuned.manifest["files"]:
        return None
    dense = results["speed"][DENSE]
    return {
        **json.loads(finetuned.read(STRUCTURE)),
        "dense": {key: value for key, value in dense.items() if key != "samples_ms"},
        "latent": results["latent"],
    }


def _stage(name: str, artifact: Artifact) -> dict[str, Any]:
    shown = {k: v for k, v in artifact.metrics.items() if not isinstance(v, str)}
    seconds = artifact.manifest["seconds"]
    return {"name": name, "status": "ran", "seconds": seconds, "metrics": shown}


def _engine(name: str, verification: Artifact, results: Mapping[str, Any]) -> dict[str, Any]:
    verdicts = read(verification.file(verdict_file(name)))
    shares = {key: share(flags) for key, flags in verdicts.flags.items()}
    speed = {k: v for k, v in results["speed"][name].items() if k != "samples_ms"}
    return {
        "name": name,
        "file": verdicts.artefact["file"],
        "precision": verdicts.artefact["precision"],
        "clean": shares.pop("clean"),
        "worst": shares.pop("worst"),
        "attacks": shares,
        "latency": speed,
        **results["sizes"][name],
    }
