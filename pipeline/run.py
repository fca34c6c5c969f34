"""Carry out a plan: reuse what is there, make what is not, publish the run."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from advprune.files import write
from advprune.observer import Observer
from advprune.repro import environment
from pipeline.devices import resolve_device
from pipeline.files import lock, needed_folder, storage_errors
from pipeline.joining import led, say
from pipeline.lines import ProgressLog
from pipeline.memory import batch_size_of, memory_errors
from pipeline.plan import plan, run_name
from pipeline.profile import Profile
from pipeline.provenance import provenance
from pipeline.recipe import Recipe
from pipeline.resolve import Sources, to_toml
from pipeline.screen import Screen
from pipeline.stage import Artifact, Context
from pipeline.stopping import stopping
from pipeline.storage import Storage
from pipeline.store import Store
from pipeline.tracking import Tracking
from pipeline.view import View
from pipeline.watch import Watch


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, its artefacts by stage, and the stages that did any work."""

    folder: Path
    artifacts: dict[str, Artifact]
    ran: list[str]


def execute(
    recipe: Recipe,
    sources: Sources,
    runs: Path,
    screen: Screen,
    profile: Profile | None = None,
    checkpoint_steps: int | None = None,
    tracking: Tracking | None = None,
    storage: Storage | None = None,
) -> Outcome:
    """Run every stage that is not cached, in order.

    Args:
        profile: where to note the time of those that run; it changes none of their results.
        checkpoint_steps: steps of training between checkpoints, beside those after each epoch.
        tracking: who else is told what training comes to.
        storage: where stages are looked for, too, and sent.

    Of several ranks this is what the first one does; the others `following.follow`.

    Raises:
        Refused and its kinds: bad input, a busy folder, a full disk; see `advprune.errors`.
        Terminated: the process was asked to end, and what it had done is kept.
    """
    device = resolve_device(recipe.device)
    stages = plan(recipe)
    name = run_name(recipe, stages)
    store = Store(runs, storage)
    artifacts: dict[str, Artifact] = {}
    ran: list[str] = []
    log, tracking = ProgressLog(runs / name), tracking or Tracking((), screen.line)
    made_with = provenance()
    guard = runs / f".{name}.lock"
    with (
        needed_folder(runs),
        storage_errors(runs),
        lock(guard, str(runs / name)),
        stopping() as stop,
        tracking.run(runs, name, recipe),
    ):
        for stage in stages:
            found = store.find(stage, artifacts)
            if found is None:
                watching = profile.stage(stage.name) if profile else nullcontext(_unchanged)
                with screen.running(stage.name) as view, watching as watched:
                    told = partial(_told, (log, tracking), stage.name, view)

                    def context(
                        out: Path, name_=stage.name, view=view, told=told, watched=watched
                    ) -> Context:
                        watch = watched(Watch(out, view, stop, checkpoint_steps, told))
                        observer = led(watch, name_, out)
                        return Context(recipe, artifacts, out, observer, runs / name)

                    with memory_errors(stage.name, batch_size_of(recipe, stage.name), device):
                        card = environment(device) | made_with
                        found = store.build(stage, artifacts, context, card)
                ran.append(stage.name)
            else:
                found.check()  # a verdict on files that were changed since would be a lie
            store.share(found)
            artifacts[stage.name] = found
            say({"made": str(found.path)})
            tracking.finished(stage.name, found)
            screen.finished(stage.name, found, cached=stage.name not in ran)
        folder = store.publish(name, artifacts)
        record = folder / "recipe.toml"
        if not record.exists():  # else the same settings, perhaps read from this very file
            write(record, to_toml(recipe, sources).encode())
        tracking.verdict(artifacts)
        return Outcome(folder, artifacts, ran)


def _told(
    those: Iterable[ProgressLog | Tracking], stage: str, view: View, history: list[dict]
) -> None:
    for one in those:
        one.tell(stage, history, view.standing.measured())


def _unchanged(observer: Observer) -> Observer:
    return observer
