"""Every pruning method in every variant, and its masks as the prune stage comes to them."""

from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

from torch import nn
from toy import Memory, make_images, make_task

from advprune.data import ImageSet
from advprune.method import PruningMethod, get, names
from advprune.survey import survey
from advprune.train import Schedule, Trained, fit
from advprune.types import Masks

IMAGES = make_images(train=24, val=9)
SCHEDULE = Schedule(epochs=3, batch_size=12, lr=0.1, validate_every=0)
NAMES = names()
SPARSITY = 0.8

# Six steps are too few for the gamma of HARP: there the search begins where it should end.
_NEEDS = {"harp-annealing=gamma": {"start_density": 1 - SPARSITY}}
# Networks to test with are narrow.
_ANY_WIDTH = {"min_channels": 1, "round_to": 1}


def make(name: str, sparsity: float, **options: Any) -> PruningMethod:
    """A method for a narrow network; two in four is the one sparsity that 2:4 has."""
    cls = get(name)
    field = cls.model_fields.get("granularity")
    granularity = options.get("granularity", field.default if field else "weight")
    if granularity in ("filter", "channel"):
        options = _ANY_WIDTH | options
    return cls(sparsity=0.5 if granularity == "2:4" else sparsity, **options)


def _variants() -> dict[str, PruningMethod]:
    """Each method as it is, and with each other choice that one of its options has."""
    found: dict[str, PruningMethod] = {}
    for name in NAMES:
        cls = get(name)
        found[name] = make(name, SPARSITY)
        for option, field in cls.model_fields.items():
            if get_origin(field.annotation) is not Literal:
                continue
            for choice in get_args(field.annotation):
                if choice != field.default:
                    key = f"{name}-{option}={choice}"
                    settings: dict[str, Any] = {option: choice, **_NEEDS.get(key, {})}
                    found[key] = make(name, SPARSITY, **settings)
    return found


VARIANTS = _variants()
SEARCHES = {key: method for key, method in VARIANTS.items() if method.searches}
SURVEYS = {key: method for key, method in VARIANTS.items() if method.surveys}


def search(
    method: PruningMethod,
    net: nn.Module,
    seed: int = 0,
    memory: Memory | None = None,
    images: ImageSet = IMAGES,
) -> Masks:
    task = replace(make_task(seed, steps=1), shape=images.shape)
    trained = Trained({}, [])
    if method.searches:
        trained = fit(net, images, task, SCHEDULE, memory or Memory(), method)
    elif method.surveys:
        trained = survey(net, images, task, SCHEDULE.batch_size, memory or Memory(), method)
    return method.finish(net, trained.state, task)
