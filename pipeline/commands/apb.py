"""`advprune apb import` and `advprune apb export`: networks from and to the benchmark."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from advprune.errors import BadData, Incompatible, NotFound, Refused
from advprune.files import write
from advprune.models import checkpoint
from advprune.models.benchmark import Statistics, Tensors, base_state, forms_of, open_state
from advprune.models.state_dict import read_state_dict
from advprune.stats import realised_sparsity
from deploy.files import demand_absent, whole_folder
from pipeline.apb import model_key, taxonomy
from pipeline.apb.entries import key_of
from pipeline.commands.results import context_of
from pipeline.files import sha256 as digest_of
from pipeline.files import write_json
from pipeline.stage import Context
from pipeline.stages.training import architecture_of, images_of

_COLOURS = 3
# The benchmark normalises nothing by itself, whatever it is told.
_WRAP = "its base networks see pixels as they are: put (x - mean) / std before it, by {}"


def take(
    file: Path,
    method: str,
    out: Path,
    sha256: str | None,
    statistics: tuple[str | None, str | None],
    as_json: bool,
) -> int:
    """Raises Refused, NotFound, BadData, Incompatible before anything is written."""
    forms_of(method)
    normalisation = _statistics(*statistics)
    demand_absent(out)
    _demand_digest(file, sha256)
    found, _ = read_state_dict(file, sha256=digest_of(file) if sha256 is None else sha256.lower())
    opened = open_state(found, file, method, normalisation)
    with whole_folder(out) as folder:
        checkpoint.save(opened.net, opened.architecture, folder)
    document = {
        "folder": str(out),
        "model": opened.architecture.model,
        "network": opened.network,
        "mean": list(opened.architecture.mean),
        "std": list(opened.architecture.std),
        "sparsity": realised_sparsity(opened.net),
        "next": f"advprune attack {out} --data cifar10 --protocol apb",
    }
    lines = [
        f"{out}: {document['network']} of {method} as {document['model']}, "
        f"{100 * document['sparsity']:.2f} % of its weights are zero",
        f"next: {document['next']}",
    ]
    _say(document, lines, as_json)
    return 0


def give(run: Path, out: Path, as_json: bool) -> int:
    """Raises Incompatible where the benchmark has no such network, data set or way to prune."""
    demand_absent(out)
    context = context_of(run)
    architecture = architecture_of(context, "finetune")
    found, _ = read_state_dict(context["finetune"].file(checkpoint.WEIGHTS))
    state = base_state(architecture, found)
    document = _document(context, architecture.model)
    key, statistics = document["model_key"], (architecture.mean, architecture.std)
    with whole_folder(out) as folder:
        files = [folder / f"{key}{ending}" for ending in (".safetensors", ".pt")]
        write(files[0], safetensors.torch.save(state))
        write(files[1], _pickled(state))
        for path in files:
            _check(path, found, statistics)
        document |= {
            "mean": list(architecture.mean),
            "std": list(architecture.std),
            "files": {path.name: digest_of(path) for path in files},
        }
        write_json(folder / f"{key}.json", document)
    document["folder"] = str(out)
    lines = [f"{out}: {key}", *(f"  {name}  {sha}" for name, sha in document["files"].items())]
    if any(architecture.mean) or any(value != 1 for value in architecture.std):
        lines.append(f"note: {_WRAP.format(f'{key}.json')}")
    _say(document, lines, as_json)
    return 0


def _document(context: Context, model: str) -> dict[str, Any]:
    """What the benchmark is told of a network of ours.

    Raises:
        Incompatible: it has no such data set.
    """
    images, method = images_of(context), context.recipe.pruning_method()
    sparsity = float(context["finetune"].metrics["sparsity"])
    key = model_key(
        model, images.shape, images.classes, method.shrinks, sparsity, key_of(method.card)
    )
    if "?" in key:
        raise Incompatible(f"{images.name}: the benchmark has CIFAR10 and SVHN; it would be {key}")
    return {"model_key": key, "sparsity": sparsity, "taxonomy": taxonomy(method.card)}


def _pickled(state: Tensors) -> bytes:
    """As the benchmark reads one: under `state_dict`, tensors and nothing else."""
    buffer = io.BytesIO()
    torch.save({"state_dict": state}, buffer)
    return buffer.getvalue()


def _check(path: Path, wanted: Tensors, statistics: Statistics) -> None:
    """Raises BadData where a file is not what it was made of, once read as the benchmark's."""
    found, _ = read_state_dict(path)
    state = open_state(found, path, "base", statistics).net.state_dict()
    if state.keys() != wanted.keys() or any(not torch.equal(state[k], wanted[k]) for k in state):
        raise BadData(f"{path}: does not read back as it was written; write it again")


def _demand_digest(path: Path, sha256: str | None) -> None:
    """A pickle from elsewhere is opened only where it is known which it is.

    Raises:
        NotFound: there is no such file.
        Refused: it is a pickle, and no digest was given.
        BadData: it has another digest.
    """
    try:
        digest = digest_of(path)
    except OSError as error:
        raise NotFound(f"{path}: cannot be read: {error.strerror}; check the path") from error
    if sha256 is None and path.suffix != ".safetensors":
        raise Refused(
            f"{path}: a pickle; if you trust where it is from, say which it is: --sha256 {digest}"
        )
    if sha256 is not None and sha256.lower() != digest:
        raise BadData(f"{path}: has the digest {digest}, not the one given; fetch it again")


def _statistics(mean: str | None, std: str | None) -> Statistics | None:
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise Refused("--mean and --std mean nothing without each other; give both")
    return _numbers("--mean", mean, 0.0), _numbers("--std", std, 1e-6)


def _numbers(flag: str, text: str, least: float) -> tuple[float, ...]:
    try:
        values = tuple(map(float, text.split(",")))
    except ValueError:
        values = ()
    if len(values) != _COLOURS or not all(least <= value <= 1 for value in values):
        raise Refused(f"{flag} {text!r}: must be three numbers in [{least:g}, 1], as 0.5,0.5,0.4")
    return values


def _say(document: dict[str, Any], lines: list[str], as_json: bool) -> None:
    sys.stdout.write((json.dumps(document) if as_json else "\n".join(lines)) + "\n")
