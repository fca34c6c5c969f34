"""The recipe: every setting of a run, typed, checked, and nothing that is not known."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from advprune.attacks.spec import parse
from advprune.data import Reading
from advprune.errors import Refused
from advprune.method import PruningMethod, Sparsity, get
from advprune.objectives import Objective, ObjectiveName, Untaught
from advprune.train import Schedule
from advprune.types import Norm, Threat
from deploy.policies import Terms
from deploy.suites import Settings, SuiteName, suite
from pipeline.devices import resolve_precision
from pipeline.radius import Eps
from pipeline.wording import first_error, unknown

# More than any machine has cores; with a hundred thousand, OpenMP ends the process.
_MOST_THREADS = 1024


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_no_switches(cls, value: Any, info: ValidationInfo) -> Any:
        """Python counts true as 1, so that `epochs = true` would train for one."""
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and field.annotation is not bool:
            raise ValueError("true and false are for switches; give a value")
        return value


class Training(Section):
    """One training stage: SGD with momentum and a cosine schedule."""

    epochs: int = Field(ge=0)
    batch_size: int = Field(default=128, ge=1)
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    warmup: float = Field(default=0.0, ge=0, lt=1)
    rise: float = Field(default=0.0, ge=0, le=1)
    validate_every: int = Field(default=1, ge=0)

    def schedule(self) -> Schedule:
        return Schedule(**self.model_dump(include=set(Training.model_fields)))


def _learns_alone(value: Any) -> Any:
    if value == "kd":
        raise ValueError(
            "kd has a teacher, the network of the stage adversarial, only while what is left of it "
            "is fine-tuned; give --set finetune.objective=kd"
        )
    return value


class Teachable(Training):
    """A stage that trains under an objective of its own, or under the recipe's."""

    objective: ObjectiveName | None = None


class RobustTraining(Teachable):
    """One that has no robust network to learn from."""

    objective: Untaught | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    _alone = field_validator("objective", mode="before")(_learns_alone)


class Quantization(RobustTraining):
    """8 bits by calibration alone (ptq), with training through them (qat), or the better (auto).

    The training is that of qat: `scales` of activations are learned or observed, and `distill` is
    the share of the float network's answers in the loss.
    """

    how: Literal["auto", "ptq", "qat"] = "auto"
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    scales: Literal["learned", "observed"] = "learned"
    distill: float = Field(default=0.0, ge=0, le=1)


class Verification(Section):
    """How hard the exported engine is attacked: as a suite says, but for what is given here."""

    split: Literal["test", "train"] = "test"
    suite: SuiteName = "standard"
    images: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    restarts: int | None = Field(default=None, ge=1)
    queries: int | None = Field(default=None, ge=1)
    fmn: int | None = Field(default=None, ge=1)
    apgd: int | None = Field(default=None, ge=1)
    health: int | None = Field(default=None, ge=1)
    attacks: tuple[str, ...] = ()

    def settings(self, seed: int) -> Settings:
        """Raises Refused naming an attack that is not known."""
        for spec in self.attacks:
            parse(spec)
        given = self.model_dump(exclude={"split", "suite", "attacks"})
        return suite(self.suite, more=self.attacks, seed=seed, **given)


def _listed(value: Any) -> Any:
    """One name, as `--set gate.policy=ship` gives it, is a list of one."""
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class Gate(Section):
    """What the engine must hold; the words are those of `advprune gate`."""

    baseline: Path | None = None
    release: Path | None = None
    policy: Names = ()
    margin: float | None = Field(default=None, ge=0, lt=1)
    floor: float | None = None
    ratio: float | None = None
    all_metrics: bool = False
    hard: Names = ()

    def terms(self) -> Terms:
        """Raises DeployError 2 where they contradict each other or are out of range."""
        return Terms(self.policy, self.margin, self.floor, self.ratio, self.all_metrics, self.hard)


class Recipe(Section):
    """A whole run. Field names are the options of `advprune run`, with dashes."""

    preset: str = "digits"
    method: str = "harp"
    sparsity: Sparsity = 0.9
    compression: float | None = Field(default=None, ge=1)
    options: dict[str, Any] = {}
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
    _alone = field_validator("objective", mode="before")(_learns_alone)

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
