"""Weights of the Adversarial Pruning Benchmark as networks of ours, and ours in its files.

Strict both ways: of a file every name has its place in the network, and of the network every
parameter and buffer is in the file. The benchmark's own loader gives a network with random weights
where the names are others, without a word.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Size, nn

from advprune import repro
from advprune.errors import BadData, Incompatible, Refused
from advprune.models import Architecture, assemble
from advprune.models.benchmark_forms import FORMS, NONE, Form, Statistics, Tensors
from advprune.models.checkpoint import fill, form_of

SHAPE, CLASSES = (3, 32, 32), 10  # of all its networks
BASES = {form.model: network for network, form in FORMS["base"].items()}
_INNER, _PARALLEL = "network.", "module."
_COUNTED = "num_batches_tracked"
_NAMED_IN_A_MESSAGE = 5


@dataclass(frozen=True)
class Opened:
    """A network on the CPU, in training mode, how it is built, and which of its two it is there."""

    net: nn.Module
    architecture: Architecture
    network: str


def forms_of(method: str) -> dict[str, Form]:
    """The definitions that a method of the benchmark brings, by `R18` and `V16`.

    Raises:
        Refused: it brings none, with those that do.
    """
    for name, forms in FORMS.items():
        if name.casefold() == method.casefold():
            return forms
    raise Refused(
        f"--method {method!r} brings no network to the benchmark; use {', '.join(FORMS)} "
        "(base: the networks that it offers to all)"
    )


def open_state(
    found: Tensors, path: Path, method: str, normalisation: Statistics | None = None
) -> Opened:
    """The network whose effective weights a file of the benchmark holds.

    Args:
        found: what the file holds, under its names.
        method: whose file it is: the names alone do not tell what stands before the first layer.
        normalisation: mean and std of that, where the definition of `method` has none of its own.

    Raises:
        Refused: no such method, or a normalisation that is missing, or is another than its own.
        Incompatible: a name, shape or type is not that of its networks; names the first of them.
        BadData: weights are not finite, or contradict each other.
    """
    if all(name.startswith(_PARALLEL) for name in found):
        found = {name.removeprefix(_PARALLEL): value for name, value in found.items()}
    forms = forms_of(method)
    wrong = {
        network: list(_differences(form.expected(_shapes(form.model)), found))
        for network, form in forms.items()
    }
    network = min(wrong, key=lambda name: len(wrong[name]))
    if differences := wrong[network]:
        named = "; ".join(differences[:_NAMED_IN_A_MESSAGE])
        raise Incompatible(
            f"{path}: neither R18 nor V16 of {method}; against {network}, {len(differences)} "
            f"differences: {named}; give the --method whose file it is"
        )
    form = forms[network]
    mean, std = _statistics(form, method, normalisation)
    architecture = Architecture(form.model, CLASSES, SHAPE, mean, std)
    net = _built(architecture)
    try:
        plain = form.plain(found)
    except BadData as error:
        raise BadData(f"{path}: {error}; fetch it again") from error
    state = net.state_dict()
    state |= {name: plain[form.rename(_bare(name))] for name in state if _is_inner(name)}
    fill(net, state, path)
    return Opened(net, architecture, network)


def base_state(architecture: Architecture, state: Tensors) -> Tensors:
    """The weights of a network of ours under the names of the benchmark's base definition.

    What is before the first layer is not among them: the base definitions have nothing there.

    Raises:
        Incompatible: it is none of the base networks, with the reason.
    """
    model = architecture.model
    if model not in BASES:
        offered = " or ".join(f"{name} ({network})" for name, network in BASES.items())
        raise Incompatible(f"model {model}: none of the benchmark's base networks; use {offered}")
    if architecture.widths:
        raise Incompatible(
            f"model {model}: {len(architecture.widths)} layers have lost channels, and the "
            "benchmark's networks have their full widths; it takes networks pruned by weights"
        )
    if (architecture.shape, architecture.classes) != (SHAPE, CLASSES):
        raise Incompatible(
            f"model {model}: for images {architecture.shape} of {architecture.classes} classes; "
            f"the benchmark's networks take {SHAPE} and know {CLASSES}"
        )
    rename = FORMS["base"][BASES[model]].rename
    return {rename(_bare(name)): value for name, value in state.items() if _is_inner(name)}


def _statistics(form: Form, method: str, given: Statistics | None) -> Statistics:
    if form.normalisation is None and given is None:
        raise Refused(
            f"{method}: its networks are told what normalises their images, and its files do not "
            "say; give --mean and --std (0,0,0 and 1,1,1 for nothing)"
        )
    # Where nothing is inside, a file may yet be of weights that want something before them.
    if given is not None and form.normalisation not in (None, NONE, given):
        raise Refused(f"{method}: its networks normalise by themselves; leave --mean and --std out")
    return given or form.normalisation or NONE


def _built(architecture: Architecture) -> nn.Module:
    with repro.seeded(0, "weights"):
        return assemble(architecture).train()


@cache
def _shapes(model: str) -> dict[str, Size]:
    net = _built(Architecture(model, CLASSES, SHAPE, (0.0,) * 3, (1.0,) * 3))
    return {_bare(k): value.shape for k, value in net.state_dict().items() if _is_inner(k)}


def _differences(expected: dict[str, Size], found: Tensors) -> Iterator[str]:
    for name, shape in expected.items():
        wanted = f"{'int64' if name.endswith(_COUNTED) else 'float32'} {tuple(shape)}"
        if name not in found:
            yield f"{name} {wanted} is missing"
        elif form_of(found[name]) != wanted:
            yield f"{name} is {form_of(found[name])}, must be {wanted}"
    for name in sorted(found.keys() - expected.keys()):
        yield f"{name} {form_of(found[name])} is unknown"


def _is_inner(name: str) -> bool:
    return name.startswith(_INNER)


def _bare(name: str) -> str:
    return name.removeprefix(_INNER)
