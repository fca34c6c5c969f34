"""The parts of a recipe: one table of settings for each kind of stage that has any."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from advprune.attacks.spec import parse
from advprune.objectives import ObjectiveName, Untaught
from advprune.train import Schedule
from deploy.policies import Terms
from deploy.suites import Settings, SuiteName, suite


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
    """One training stage: SGD with momentum and a cosine schedule.

    `batch_size` is that of a step, whatever shares it: `accumulate` pieces of it one after the
    other, and ranks, over which batch norm looks unless `sync_bn` is off.
    """

    epochs: int = Field(ge=0)
    batch_size: int = Field(default=128, ge=1)
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    warmup: float = Field(default=0.0, ge=0, lt=1)
    rise: float = Field(default=0.0, ge=0, le=1)
    validate_every: int = Field(default=1, ge=0)
    accumulate: int = Field(default=1, ge=1)
    sync_bn: bool = True

    def schedule(self) -> Schedule:
        return Schedule(**self.model_dump(include=set(Training.model_fields)))


def learns_alone(value: Any) -> Any:
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
    _alone = field_validator("objective", mode="before")(learns_alone)


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
