"""The page of the attacks: ours, those of torchattacks, and what each suite asks of them."""

import importlib
import inspect
from typing import Any, get_args

from advprune import attacks
from advprune.attacks import zoo
from advprune.attacks.losses import LOSSES
from advprune.attacks.spec import settings
from deploy.suites import Settings, SuiteName, suite
from pages.markdown import MADE, code, plain, table
from pipeline.commands.listing import attack_rows

_INTRODUCTION = """# Attacks

Every attack is a function `attack(model, x, y, threat, rng)`. It stays in the ball of the threat
and in the box, leaves no trace on the model, and draws its random numbers image by image, so that
the batch size changes nothing. All of ours take the maximum norm and the Euclidean one (`--norm
l2`).

    advprune attack MODEL.onnx --attack apgd:steps=50,loss=dlr --attack square:queries=2000
    advprune run --set 'verify.attacks=["cw", "torchattacks:MIFGSM"]'

Settings follow a colon, `KEY=VALUE` with commas between. A run is attacked by a [suite](#suites) in
any case; what is named is added. `advprune attacks` prints the lists below.

"""
_LOSSES = "Losses: {}; maximised for each image by itself.\n\n"
_OTHERS = """## Of torchattacks

As second opinions and for comparison with other people's numbers: `torchattacks:NAME`. They draw
for a whole batch at once, so a result is repeatable, but it is a result of that image in that
batch. Where one leaves the ball of the threat it has found nothing. A step size that is not given
follows eps. `AutoAttack` is not among them: there it takes 10 steps where AutoAttack takes 100;
use `autoattack`.

"""
_SUITES = """## Suites

How hard a verification attacks (`--suite`, or `--set verify.suite=NAME`). *White* are attacks on
the twin of each engine; *thorough* ones on the twin of the engine that ships. Transfers from
every ancestor, BPDA and Square on the engines belong to all of them. A single number can be
changed: [settings](settings.md#verify).

"""
_TUNED = "`fmn` after a search for its settings, on images apart from those that are judged."
_ABOUT = {
    "images": "images, from the beginning of the split",
    "white": "white",
    "thorough": "thorough",
    "steps": "steps of PGD",
    "restarts": "starts of PGD",
    "queries": "queries of Square",
    "fmn": "steps to the nearest adversarial image",
    "apgd": "steps of each target of APGD and FAB",
    "health": "images of the checks",
}


def page() -> str:
    ours = [row for row in attack_rows() if not row["name"].startswith("torchattacks:")]
    theirs = [[f"`{name}`", zoo.made_for(name) or "any", _given(name)] for name in zoo.names()]
    return "".join(
        [
            f"{MADE}\n\n{_INTRODUCTION}## Ours\n\n",
            table(["attack", "paper", "asks for", "settings", "what it is"], map(_own, ours)),
            "\n",
            _LOSSES.format(", ".join(f"`{name}`" for name in LOSSES)),
            _SUITES,
            _suites(),
            f"\n{_OTHERS}",
            table(["attack", "norm", "settings"], theirs),
        ]
    )


def _own(row: dict[str, Any]) -> list[str]:
    name = row["name"]
    if name not in attacks.names():
        return [f"`{name}`", row["paper"], row["needs"], row["settings"], _TUNED]
    told = importlib.import_module(f"advprune.attacks.{name}").__doc__ or ""
    return [f"`{name}`", row["paper"], row["needs"], _settings(name), plain(_first(told))]


def _settings(name: str) -> str:
    known = settings(attacks.get(name)).items()
    return ", ".join(f"`{key}={_default(entry.default)}`" for key, entry in known)


def _default(value: Any) -> str:
    """A loss by its name, and what is chosen by eps or steps as a blank to be filled in."""
    named = {function: name for name, function in LOSSES.items()}
    if callable(value):
        return named[value]
    return "" if value is None else str(value)


def _given(name: str) -> str:
    known = zoo.settings(name).items()
    return ", ".join(
        f"`{key}`" if key in ("alpha", "n_classes") else f"`{key}={value}`" for key, value in known
    )


def _suites() -> str:
    names = get_args(SuiteName)
    fields = [field for field in inspect.signature(Settings).parameters if field in _ABOUT]
    rows = [
        [_ABOUT[field], *(code(getattr(suite(name), field)) for name in names)]
        for field in sorted(fields, key=list(_ABOUT).index)
    ]
    return table(["", *names], rows)


def _first(text: str) -> str:
    """The first sentence of a docstring, on one line."""
    return " ".join(text.partition("\n\n")[0].split())
