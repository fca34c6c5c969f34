"""The recipe: every setting of a run, typed, checked, and nothing that is not known."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from advprune.data import Reading
from advprune.errors import Refused
from advprune.method import PruningMethod, Sparsity, get
from advprune.objectives import Objective, ObjectiveName, Untaught
from advprune.types import Norm, Threat
from pipeline.devices import resolve_precision
from pipeline.radius import Eps
from pipeline.sections import (
    Gate,
    Names,
    Quantization,
    RobustTraining,
    Section,
    Teachable,
    Training,
    Verification,
    learns_alone,
)
from pipeline.wording import first_error, unknown

# More than any machine has cores; with a hundred thousand, OpenMP ends the process.
_MOST_THREADS = 1024


class Recipe(Section):
    """A whole run. Field names are the options of `advprune run`, with dashes."""

    preset: str = "digits"
    method: str = "harp"
    sparsity: Sparsity = 0.9
    compression: float | None = Field(default=None, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)
    data: str = "digits"
    data_dir: Path = Path("data")
    extra_data: Path | None = None
    image_size: int | None = Field(default=None, ge=4)
    convert: Literal["rgb"] | None = None
    skip_bad: bool = False
    stream: bool = False
    data_workers: int | None = Field(default=None, ge=0, le=_MOST_THREADS)
    limit_train: int | None = Field(default=None, ge=1)
    limit_test: int | None = Field(default=None, ge=1)
    split_seed: int = Field(default=0, ge=0, lt=2**64)
    model: str = "digits_resnet"
    weights: Path | None = None
    freeze: Names = ()
    normalize: Literal["data", "imagenet", "none"] = "data"
    objective: Untaught = "pgd"
    norm: Norm = "linf"  # before eps, which it bounds
    eps: Eps = 8 / 255
    attack_steps: int = Field(default=10, ge=1)
    beta: float | None = Field(default=None, ge=0)
    replays: int = Field(default=4, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**64)
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int | None = Field(default=None, ge=1, le=_MOST_THREADS)
    uint8_head: bool = False
    fp16: bool = False
    standard: Training = Training(epochs=100)
    adversarial: RobustTraining = RobustTraining(epochs=100)
    prune: RobustTraining = RobustTraining(epochs=20)
    finetune: Teachable = Teachable(epochs=100, lr=0.01)
    quantize: Quantization = Quantization(epochs=10, lr=0.01)
    verify: Verification = Verification()
    gate: Gate = Gate()
    _alone = field_validator("objective", mode="before")(learns_alone)

    def reading(self) -> Reading:
        """How image files are read."""
        return Reading(self.image_size, self.convert == "rgb", self.skip_bad)

    def identity(self) -> dict[str, Any]:
        """All settings that a result can depend on, as JSON has them."""
        return self.model_dump(mode="json", exclude={"data_workers"})

    def threat(self) -> Threat:
        return Threat(eps=self.eps, norm=self.norm)

    def robust_objective(self, stage: Teachable) -> Objective:
        """The objective of a stage: its own, else the recipe's."""
        return self._objective(stage.objective or self.objective)

    def natural_objective(self) -> Objective:
        """Of training on images as they are."""
        return self._objective("natural")

    def _objective(self, name: ObjectiveName) -> Objective:
        precision = resolve_precision(self.precision, self.device)
        threat, steps = self.threat(), self.attack_steps
        return Objective(name, threat, steps, self.beta, precision, self.replays)

    def pruning_method(self) -> PruningMethod:
        """Raises Refused naming the option that the method refuses."""
        cls = get(self.method)
        known = [name for name in cls.model_fields if name != "sparsity"]
        for key in self.options:
            if key not in known:
                raise Refused(unknown(f"option of {self.method}", key, known))
        try:
            return cls(sparsity=self.sparsity, **self.options)
        except ValidationError as error:
            raise Refused(first_error(error, {}, prefix="options.")) from None

    def title(self, device: str) -> str:
        """One line that tells this run from others: what is gone, of what, on which data."""
        removed = f"{100 * self.sparsity:g} % removed ({1 / (1 - self.sparsity):.4g}×)"
        if self.pruning_method().shrinks:
            removed = f"{100 * self.sparsity:g} % of channels removed"
        if self.compression is not None:
            removed = f"compressed {self.compression:g}×"
        parts = (self.method, removed, self.model, self.data, device, f"seed {self.seed}")
        return " · ".join(parts)

    @property
    def name(self) -> str:
        """Folder name of the run, for people; the key of its settings is added by the plan."""
        data = _shortened(Path(self.data.partition(":")[2]).name or self.data)
        budget = f"s{self.sparsity:g}" if self.compression is None else f"c{self.compression:g}"
        model = _shortened(self.model)
        return f"{data}_{model}_{self.method}_{budget}_seed{self.seed}".replace(":", "-")


def _shortened(name: str) -> str:
    """A name of at most 80 bytes: file systems take 255, and the run's has two such names."""
    return os.fsencode(name)[:80].decode(errors="ignore")


def known_keys() -> list[str]:
    """Every dotted key of the recipe but the options of a method."""
    keys: list[str] = []
    for name, field in Recipe.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            keys += [f"{name}.{leaf}" for leaf in kind.model_fields]
        elif name != "options":
            keys.append(name)
    return keys
