"""The attacks of torchattacks (Kim 2020, arXiv 2010.01950) under the interface of ours.

As second opinions, for comparison with other people's numbers. Unlike ours they draw for a whole
batch at once, and some stop or scale by the batch: here their generators are seeded from the first
image's stream, so a result is repeatable, but it is a result of that image in that batch.
"""

import difflib
import inspect
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advprune import repro
from advprune.attacks import Attack
from advprune.attacks.pgd import check_steps
from advprune.errors import Refused
from advprune.frozen import frozen
from advprune.repro import ImageRandom
from advprune.types import Classifier, Images, Labels, Logits, Norm, Threat, per_image

_NO_ATTACKS = {
    "VANILA",  # returns the images
    "MultiAttack",  # takes attacks: the union is `evaluate`'s
    "LGV",  # trains networks of its own
    "AutoAttack",  # 10 steps where AutoAttack has 100
}
_L2 = {"PGDL2", "PGDRSL2"}
_RADIUS = ("eps", "max_epsilon")
# What a constructor may take and a user may not give: the threat, the seed and the screen are ours.
_OURS = {
    "model": "the attack gets the model when it runs",
    "eps": "eps is the threat's",
    "max_epsilon": "eps is the threat's",
    "norm": "the norm is the threat's",
    "seed": "the seed is the run's",
    "verbose": "attacks do not print",
}
# Real numbers whose defaults happen to be whole.
_REAL = {"c", "kappa", "lam", "nsig", "scale"}
# Images of float32 end up next to the ball's surface, not on it.
_SLACK = 1e-5


def names() -> list[str]:
    """The attacks of torchattacks that need nothing but a model and images, sorted."""
    import torchattacks

    return sorted(set(torchattacks.__all__) - _NO_ATTACKS)


def settings(name: str) -> dict[str, Any]:
    """What can be set for an attack: name -> the library's default.

    Two defaults are not taken over, because they are made for eps 8/255: an `alpha` beside `steps`
    is 2.5 eps / steps, as in our `pgd`, and one without grows in proportion to eps. `n_classes`
    is the model's.

    Raises:
        Refused: there is no such attack.
    """
    return {key: value for key, value in _defaults(name).items() if key not in _OURS}


def make(name: str, settings: Mapping[str, object]) -> Attack:
    """An attack of torchattacks as one of ours.

    It returns images of the shape of `x` inside the threat: where the library's attack leaves it,
    as those that minimise a norm may, it has found nothing, and the image itself is returned.
    It has no side effects, not on the model and not on the generators of torch, numpy and Python.
    It raises Refused where the images are not in [0, 1], the attack is made for another norm than
    the threat's, or the model has no gradient and the attack needs one.

    Args:
        name: one of `names()`.
        settings: values by the names of `settings(name)`; what is left out has its default.

    Raises:
        Refused: an unknown name or setting, a value of the wrong type, or a setting that is not
            the user's: the radius, the norm and the seed.
    """
    _check_settings(name, settings)
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}

    def attack(model: Classifier, x: Images, y: Labels, threat: Threat, rng: ImageRandom) -> Images:
        _check_call(name, x, threat)
        if threat.eps == 0.0 or len(x) == 0:
            return x.detach().clone()
        seed = int(rng.fork("torchattacks").bits(1)[0, 0])
        with _seeded(seed), frozen(model), torch.enable_grad():
            found = _run(name, given, model, x.detach().clone(), y, threat, seed)
        within = threat.length(found - x) <= threat.eps + _SLACK
        within &= ((found >= threat.low) & (found <= threat.high)).flatten(1).all(dim=1)
        return torch.where(per_image(within), threat.project(found, x), x)

    return attack


class _Shell(nn.Module):
    """A classifier as a module that torchattacks may switch between modes as it likes."""

    def __init__(self, model: Classifier, x: Images) -> None:
        super().__init__()
        self._classify = lambda images: model(images)  # not a submodule: modes stop here
        self._device = nn.Parameter(x.new_empty(0), requires_grad=False)  # it looks for one
        self.eval()

    def forward(self, x: Images) -> Logits:
        return self._classify(x)


def _run(
    name: str,
    given: Mapping[str, object],
    model: Classifier,
    x: Images,
    y: Labels,
    threat: Threat,
    seed: int,
) -> Images:
    import torchattacks

    defaults = _defaults(name)
    arguments = _scaled(defaults, given, threat.eps) | dict(given)
    if "n_classes" in defaults and "n_classes" not in given:
        with torch.no_grad():
            arguments["n_classes"] = model(x[:1]).shape[1]
    ours = {"norm": {"linf": "Linf", "l2": "L2"}[threat.norm], "seed": seed % 2**32}
    arguments |= {key: value for key, value in ours.items() if key in defaults}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numpy's, about the library's own code
            found: Tensor = getattr(torchattacks, name)(_Shell(model, x), **arguments)(x, y)
    except RuntimeError as error:
        if "does not require" not in str(error):
            raise
        raise Refused(
            f"attack torchattacks:{name}: the model has no gradient for its input; use square"
        ) from error
    return found.detach()


def _scaled(defaults: Mapping[str, Any], given: Mapping[str, object], eps: float) -> dict[str, Any]:
    """The radius, and the step size where the user gives none, for this eps."""
    radius = next((key for key in _RADIUS if key in defaults), None)
    if radius is None:
        return {}
    if "alpha" not in defaults:
        return {radius: eps}
    steps = given.get("steps", defaults.get("steps"))
    share = 2.5 / steps if isinstance(steps, int) else defaults["alpha"] / defaults[radius]
    return {radius: eps, "alpha": share * eps}


def _defaults(name: str) -> dict[str, Any]:
    """The constructor's arguments and their defaults, without the model."""
    import torchattacks

    if name == "AutoAttack":
        raise Refused(
            "attack torchattacks:AutoAttack: takes 10 steps where AutoAttack takes 100 and is "
            "another attack; use autoattack"
        )
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.4)
        raise Refused(
            f"attack torchattacks:{name} is not known; "
            + (f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(names())}")
        )
    parameters = inspect.signature(getattr(torchattacks, name)).parameters.values()
    return {entry.name: entry.default for entry in parameters if entry.name != "model"}


def made_for(name: str) -> Norm | None:
    """The norm that an attack is made for; None where it takes any, or minimises its own."""
    defaults = _defaults(name)
    if "norm" in defaults or not any(key in defaults for key in _RADIUS):
        return None
    return "l2" if name in _L2 else "linf"


def _check_settings(name: str, given: Mapping[str, object]) -> None:
    known = settings(name)
    for key, value in given.items():
        where = f"attack torchattacks:{name}: "
        if key in _OURS:
            raise Refused(f"{where}{key} cannot be set; {_OURS[key]}")
        if key not in known:
            raise Refused(f"{where}{key!r} is not known; use {', '.join(known) or 'no setting'}")
        if not _fits(value, known[key], real=key in _REAL):
            kind = "float" if key in _REAL else type(known[key]).__name__
            raise Refused(f"{where}{key} must be of type {kind}, got {value!r}")
        if key == "steps" and isinstance(value, int):
            check_steps(value)


def _fits(value: object, default: object, *, real: bool) -> bool:
    # A bool is an int to Python, and no number to anyone.
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float) or real:
        return isinstance(value, int | float)
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple) or len(value) != len(default):
            return False
        return all(_fits(part, 0, real=True) for part in value)
    return isinstance(value, type(default))


def _check_call(name: str, x: Images, threat: Threat) -> None:
    norm = made_for(name)
    if norm not in (None, threat.norm):
        raise Refused(
            f"attack torchattacks:{name}: made for {norm}, and the threat is {threat.norm}; "
            "choose another attack or --norm"
        )
    if len(x) and not (x.min() >= 0.0 and x.max() <= 1.0):
        remedy = "divide by 255" if x.max() > 1.0 else "give them before normalisation"
        raise Refused(
            f"attack torchattacks:{name}: images span [{x.min():g}, {x.max():g}]: {remedy}"
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators of torch, numpy and Python, seeded, and afterwards as they were."""
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002, what they draw from
    with repro.seeded(seed, "torchattacks"):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)  # noqa: NPY002
