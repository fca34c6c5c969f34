"""The model card: what a bundle's models are, what was measured on them, and how far to believe it.

Sections as in Mitchell et al. 2019, "Model Cards for Model Reporting", where they apply.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from deploy.outcome import code
from deploy.report import measured_markdown
from deploy.words import flat, radius

_ORDER = ("INVALID", "SUSPECT")
_LIMITS = (
    "Robust accuracy is an upper bound: another attack may find more. It holds for the threat "
    "below and for no other change of an image.",
    "Intervals are about the images alone. Another seed of the training gives another network.",
    "Another processor may round an 8-bit activation the other way: check on the device, as below.",
)
_DEVICE = """\
    sha256sum --check --strict SHA256SUMS
    python3 edge_verify.py                 # digests, expected logits, replay, latency
    python3 build_engine.py                # model.plan for this GPU, from model.int8.onnx
    python3 -m deploy.gate edge.int8.json --baseline verdicts.int8.json    # where advprune is

`replay.npz` holds images with an adversarial one each, found where there were gradients; a device
shows them to its engine again. `model.int8.onnx` is TensorRT's form, `model.int8.x86.onnx` the same
function for ONNX Runtime on x86; `triton/` is a model repository for Triton, and an engine goes to
the folder `1` of the model that has none."""


def render_card(name: str, release: int, report: Mapping[str, Any]) -> str:
    """The card of a bundle as Markdown.

    Args:
        name, release: of the bundle.
        report: of the run that it was made of.

    Raises:
        DeployError: 65, the report lacks something or has another schema.
    """
    threat, recipe = report["threat"], report["recipe"]
    _, _, measured = measured_markdown(dict(report)).partition("\n")
    settings = {"data": data_name(report)} | {k: recipe[k] for k in _TOLD if recipe.get(k)}
    lines = [
        f"# {code(name)}, release {release}",
        "",
        "An image classifier, trained against adversarial images, pruned, in 8 bits.",
        "",
        "## Measured",
        measured.strip(),
        "",
        "## Threat",
        "",
        f"Changes of an image within eps = {radius(threat['eps'])} in the {threat['norm']} norm, "
        f"pixels staying in [{threat['low']:g}, {threat['high']:g}].",
        "",
        "## Health of the evaluation",
        "",
        *_health(report["health"]),
        "",
        "## Made from",
        "",
        *(f"- {key}: {code(' '.join(value.split()))}" for key, value in flat(settings).items()),
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in _LIMITS),
        "",
        "## On a device",
        "",
        _DEVICE,
    ]
    return "\n".join(lines) + "\n"


def data_name(report: Mapping[str, Any]) -> str:
    """Which data, without where they lie: a path is nobody's business but its machine's."""
    kind, _, path = report["recipe"]["data"].partition(":")
    return f"{kind}:{PurePath(path).name}" if path else kind


_TOLD = ("model", "method", "sparsity", "compression", "objective", "options")


def _health(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many checks found what, and each that did not find all well."""
    counts = Counter(check["status"] for check in checks)
    told = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    odd = sorted(
        (c for c in checks if c["status"] in _ORDER), key=lambda c: _ORDER.index(c["status"])
    )
    return [
        f"{len(checks)} checks of the attacks themselves: {told}.",
        *(["", *(f"- {c['status']} {c['id']}: {code(c['what'])}" for c in odd)] if odd else []),
    ]
