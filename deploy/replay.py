"""Exported engines as classifiers of tensors, so that attacks and measurements can ask them."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from copy import copy, deepcopy
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advprune.data import Split, as_float
from advprune.errors import Refused
from advprune.evaluate import is_correct, predict
from advprune.folding import folded
from advprune.spans import span
from advprune.types import Classifier, Images, Logits, Threat


class Info(Protocol):
    @property
    def input(self) -> str: ...

    @property
    def precision(self) -> str: ...


class Engine(Protocol):
    """The part of an `EdgeModel` that verification needs."""

    @property
    def info(self) -> Info: ...

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]: ...


def classifier(engine: Engine) -> Classifier:
    """The engine as a function of float32 (N, C, H, W) tensors in [0, 1]; it has no gradient."""

    def logits(images: Images) -> Logits:
        with span("engine"):
            answer = engine.predict(images.detach().cpu().contiguous().numpy())
        return torch.from_numpy(np.asarray(answer, dtype=np.float32)).to(images.device)

    return logits


class Bpda(nn.Module):
    """An engine's logits with the gradient of its twin (BPDA, Athalye et al. 2018, section 4)."""

    def __init__(self, twin: nn.Module, engine: Classifier) -> None:
        super().__init__()
        self.twin = twin
        self._engine = engine

    def forward(self, x: Images) -> Logits:
        logits = self.twin(x)
        return logits + (self._engine(x) - logits).detach()


def is_quantised(engine: Engine) -> bool:
    """Whether the engine rounds to codes, so that it is another function than its ancestor."""
    return engine.info.precision == "int8"


def twin_name(engine: str) -> str:
    """The name of an engine's own differentiable twin."""
    return f"{engine}-twin"


def takes_bytes(engine: Engine) -> bool:
    """Whether the engine reads 8-bit pixels, so that nothing finer ever reaches it."""
    return engine.info.input.startswith("uint8")


def reachable(threat: Threat, engine: Engine) -> Threat:
    """The threat that is left at the engine's input."""
    return _whole_levels(threat) if takes_bytes(engine) else threat


def deliverable(candidates: Images, x: Images, threat: Threat, engine: Engine) -> Images:
    """Adversarial images as the engine can receive them: 8-bit where it takes 8-bit images."""
    return storable(candidates, x, threat) if takes_bytes(engine) else candidates


def storable(candidates: Images, x: Images, threat: Threat) -> Images:
    """Adversarial images as 8-bit files can hold them, still inside the ball.

    Args:
        candidates: float32 (N, C, H, W) within `threat` of `x`.
        x: the images themselves, 8-bit ones in [0, 1].
    """
    if threat.norm == "linf":
        return _whole_levels(threat).project((candidates * 255).round() / 255, x)
    # Whole levels towards the image only shorten the offset, whatever the norm; the first rounding
    # keeps an offset of a whole level at that level, whatever its last binary digit.
    levels = ((candidates - x) * 255).round(decimals=3).trunc()
    return (x + levels / 255).clamp(threat.low, threat.high)


def _whole_levels(threat: Threat) -> Threat:
    """Between 8-bit images only whole grey levels can be told apart, and eps is cut to those.

    Rounding to the nearest instead would leave the ball by up to half a level.
    """
    if threat.norm != "linf":
        return threat
    # The constant keeps 8/255 at eight levels, whatever its last binary digit.
    return replace(threat, eps=math.floor(threat.eps * 255 + 1e-6) / 255)


class Targets:
    """Every model that adversarial images are replayed on: twins, then exported engines.

    Attributes:
        twins: differentiable networks by name, batch norm folded where that can be done.
        twin_of: by engine, the twin that stands for it; empty where there are no twins.
        models: twins and engines by name, as classifiers.
        clean: logits of the images themselves, by model.
        before: `digests` before any attack.
        x: the images, float32 (N, C, H, W) in [0, 1].
    """

    def __init__(
        self,
        twins: Mapping[str, nn.Module],
        engines: Mapping[str, Engine],
        split: Split,
        threat: Threat,
        batch_size: int,
    ) -> None:
        self.engines, self.split, self.threat = engines, split, threat
        self.batch_size = batch_size
        self.x = as_float(split.images)
        self.twins = {name: folded(twin, self.x[:8]) for name, twin in twins.items()}
        self.twin_of = {name: _stands_for(name, engines, twins) for name in engines if twins}
        self.models: dict[str, Classifier] = dict(self.twins)
        self.models |= {name: classifier(engine) for name, engine in engines.items()}
        self.clean = self.logits(self.x, threat)
        self.before = self.digests()

    @property
    def everywhere(self) -> Threat:
        """The threat without a bound but the box."""
        return self.threat.unbounded(tuple(self.x.shape[1:]))

    def digests(self) -> dict[str, str]:
        """By twin, SHA-256 of its weights and buffers."""
        return {name: _digest(twin) for name, twin in self.twins.items()}

    def apart(self) -> "Targets":
        """The same with twins of its own, for another thread: attacks change a network's mode."""
        other = copy(self)
        other.twins = deepcopy(self.twins)
        other.models = {**self.models, **other.twins}
        return other

    def of(self, rows: Tensor) -> "Targets":
        """The same models for some of the images: those at these positions, to search on."""
        other = copy(self)
        other.split = self.split.subset(rows.to(self.split.labels.device))
        other.x = as_float(other.split.images)
        other.clean = {name: logits[rows.to(logits.device)] for name, logits in self.clean.items()}
        return other

    def deliver(self, name: str, candidates: Images, threat: Threat) -> Images:
        """The candidates of an attack under `threat` as this model receives them."""
        if name not in self.engines:
            return candidates
        return deliverable(candidates, self.x, threat, self.engines[name])

    @span("replay")
    def logits(self, candidates: Images, threat: Threat) -> dict[str, Logits]:
        """What every model answers to the candidates, one for each image of the split."""
        return {
            name: predict(model, self.deliver(name, candidates, threat), self.batch_size)
            for name, model in self.models.items()
        }

    def gap(self, logits: Mapping[str, Logits], engine: str) -> Tensor:
        """Absolute differences of logits between an engine and its twin, (N, K)."""
        return (logits[engine] - logits[self.twin_of[engine]]).abs()

    def survivors(self, logits: Mapping[str, Logits]) -> dict[str, Tensor]:
        """bool (N,) by model: right on the image and, by these logits, on its candidate."""
        labels = self.split.labels
        return {
            name: is_correct(answer, labels) & is_correct(self.clean[name], labels)
            for name, answer in logits.items()
        }


def _stands_for(engine: str, engines: Iterable[str], twins: Iterable[str]) -> str:
    """An engine's own twin, else the youngest ancestor: the network that was exported."""
    if twin_name(engine) in twins:
        return twin_name(engine)
    own = {twin_name(name) for name in engines}
    ancestors = [name for name in twins if name not in own]
    if not ancestors:
        raise Refused(f"verify: engine {engine!r} has neither a twin nor an ancestor to attack")
    return ancestors[-1]


def _digest(net: nn.Module) -> str:
    hasher = hashlib.sha256()
    for name, value in net.state_dict().items():
        hasher.update(name.encode())
        hasher.update(value.detach().cpu().contiguous().numpy())
    return hasher.hexdigest()
