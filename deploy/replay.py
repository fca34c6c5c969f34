"""Exported engines as classifiers of tensors, so that attacks and measurements can ask them."""

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advprune.data import Split, as_float
from advprune.evaluate import is_correct, predict
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


def takes_bytes(engine: Engine) -> bool:
    """Whether the engine reads 8-bit pixels, so that nothing finer ever reaches it."""
    return engine.info.input.startswith("uint8")


def reachable(threat: Threat, engine: Engine) -> Threat:
    """The threat that is left at the engine's input.

    Between 8-bit images only whole grey levels can be told apart, and eps is cut to whole levels:
    rounding to the nearest instead would leave the ball by up to half a level.
    """
    if not takes_bytes(engine):
        return threat
    # The constant keeps 8/255 at eight levels, whatever its last binary digit.
    levels = math.floor(threat.eps * 255 + 1e-6)
    return Threat(levels / 255, threat.low, threat.high, threat.norm)


def deliverable(candidates: Images, x: Images, threat: Threat, engine: Engine) -> Images:
    """Adversarial images as the engine can receive them: 8-bit where it takes 8-bit images.

    Args:
        candidates: float32 (N, C, H, W) within `threat` of `x`.
        x: the images themselves, 8-bit ones in [0, 1].
    """
    if not takes_bytes(engine):
        return candidates
    return reachable(threat, engine).project((candidates * 255).round() / 255, x)


class Targets:
    """Every model that adversarial images are replayed on: float twins, then exported engines.

    Attributes:
        models: all of them by name, as classifiers.
        clean: logits of the images themselves, by model.
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
        self.twins, self.engines, self.split, self.threat = twins, engines, split, threat
        self.batch_size = batch_size
        self.models: dict[str, Classifier] = dict(twins)
        self.models |= {name: classifier(engine) for name, engine in engines.items()}
        self.x = as_float(split.images)
        self.clean = self.logits(self.x, threat)

    def deliver(self, name: str, candidates: Images, threat: Threat) -> Images:
        """The candidates of an attack under `threat` as this model receives them."""
        if name not in self.engines:
            return candidates
        return deliverable(candidates, self.x, threat, self.engines[name])

    def logits(self, candidates: Images, threat: Threat) -> dict[str, Logits]:
        """What every model answers to the candidates, one for each image of the split."""
        return {
            name: predict(model, self.deliver(name, candidates, threat), self.batch_size)
            for name, model in self.models.items()
        }

    def survivors(self, logits: Mapping[str, Logits]) -> dict[str, Tensor]:
        """bool (N,) by model: right on the image and, by these logits, on its candidate."""
        labels = self.split.labels
        return {
            name: is_correct(answer, labels) & is_correct(self.clean[name], labels)
            for name, answer in logits.items()
        }
