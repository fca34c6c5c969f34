"""Stages built in processes that die, and what the same stages are when nothing disturbs them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dying import LONG
from forkserver import Children, Ended, Job

# What each stage reads.
NEEDS = {
    "data": (),
    "standard": ("data",),
    "adversarial": ("data", "standard"),
    "prune": ("data", "adversarial"),
    "finetune": ("data", "prune"),
    "quantize": ("data", "finetune"),
    "export": ("data", "finetune", "quantize"),
}
assert set(LONG) < set(NEEDS)


@dataclass(frozen=True)
class Whole:
    """A stage that nothing disturbed."""

    path: str
    digest: str
    seconds: float
    operations: int


@dataclass(frozen=True)
class Crash:
    """Where stages are built in processes that die."""

    children: Children
    whole: dict[str, Whole]

    def job(
        self,
        stage: str,
        root: Path,
        settings: dict[str, Any] | None = None,
        mutant: str | None = None,
        **fate: Any,
    ) -> Job:
        parents = {name: self.whole[name].path for name in NEEDS[stage]}
        place = str(root / "runs")
        args = (stage, parents, place, settings, mutant)
        return Job("dying:build", args, below=place, **fate)

    def build(self, stage: str, root: Path, *given: Any, **fate: Any) -> Ended:
        return self.children.run(self.job(stage, root, *given, **fate))

    def undisturbed(self, stage: str, root: Path, *given: Any) -> Whole:
        end = self.build(stage, root, *given)
        assert end.code == 0, end.err
        path, digest = end.result
        return Whole(path, digest, end.seconds, end.operations)
