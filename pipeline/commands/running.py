"""`advprune run` and `advprune plan`."""

import json
import os
import sys
from dataclasses import asdict
from typing import Any

from rich.console import Console

from advprune import ranks
from advprune.errors import Refused
from advprune.ranks import RankLost
from deploy.report import terminal
from pipeline.commands.capacity import plan_capacity
from pipeline.devices import resolve_device
from pipeline.following import follow
from pipeline.joining import joined, say
from pipeline.launching import demand_room, launch
from pipeline.options import PLAN_OPTIONS, RECIPE_OPTIONS, RUN_OPTIONS, SWEEP_OPTIONS
from pipeline.plan import Forecast, forecast
from pipeline.plan import plan as plan_stages
from pipeline.profile import Profile
from pipeline.profile_report import FOLDER, show, write_profile
from pipeline.recipe import Recipe
from pipeline.resolve import Sources, resolve
from pipeline.run import execute
from pipeline.screen import Screen
from pipeline.stopping import Terminated
from pipeline.storage import Storage
from pipeline.store import Store
from pipeline.tracking import Tracking


def run(values: dict[str, Any]) -> int:
    every, nproc = _checkpoint_steps(values["checkpoint_steps"]), values["nproc"]
    recipe, sources = _recipe(values)
    demand_room(nproc, recipe.device)
    if nproc > 1 and "WORLD_SIZE" not in os.environ:
        plan_stages(recipe)  # what is wrong with it is said once
        return launch(nproc)
    with joined(resolve_device(recipe.device)):
        if ranks.number():
            return _follow(recipe)
        return _lead(values, recipe, sources, every)


def _lead(values: dict[str, Any], recipe: Recipe, sources: Sources, every: int | None) -> int:
    # With --json standard output is the document alone; progress goes to the other stream.
    screen = Screen(Console(stderr=values["as_json"]))
    tracking = Tracking(values["track"], screen.line)
    storage = Storage(values["storage"]) if values["storage"] else None
    screen.title(recipe.title(recipe.device))
    profile = Profile(resolve_device(recipe.device)) if values["profile"] else None
    outcome = execute(recipe, sources, values["runs"], screen, profile, every, tracking, storage)
    report = json.loads(outcome.artifacts["report"].read("report.json"))
    if values["as_json"]:
        sys.stdout.write(json.dumps({**report, "run": outcome.folder.name}) + "\n")
    else:
        terminal(report, screen.console)
    if not outcome.ran:
        screen.line("nothing to do: every stage was there already")
    if profile:
        show(write_profile(profile, outcome.artifacts, outcome.folder), screen.console)
        screen.line(f"{outcome.folder}/{FOLDER}/profile.md")
    screen.line(f"{outcome.folder}/report.html")
    code = int(outcome.artifacts["gate"].metrics["exit_code"])
    say({"exit_code": code})
    return code


def _follow(recipe: Recipe) -> int:
    """As another rank, which has nothing to say but what went wrong here alone."""
    try:
        return follow(recipe)
    except (RankLost, Terminated) as ended:
        raise SystemExit(ended.exit_code) from None
    except Refused as refusal:
        sys.stderr.write(f"advprune: rank {ranks.number()}: {refusal}\n")
        raise SystemExit(refusal.exit_code) from None


def plan(values: dict[str, Any]) -> int:
    recipe, _ = _recipe(values)
    if any(values[option.name] is not None for option in PLAN_OPTIONS):
        return plan_capacity(recipe, values)
    forecasts = forecast(recipe, Store(values["runs"]))
    if values["as_json"]:
        sys.stdout.write(json.dumps([_plain(entry) for entry in forecasts]) + "\n")
        return 0
    console = Console()
    console.print(recipe.title(recipe.device), style="bold", highlight=False, markup=False)
    for entry in forecasts:
        cost = "" if entry.seconds is None else f"about {entry.seconds:,.0f} s"
        console.print(f" {entry.name:<12} {'cached' if entry.cached else cost}", highlight=False)
    for entry in forecasts:
        if entry.outlook is not None:
            for line in entry.outlook.lines:
                console.print(f" {line}", highlight=False, markup=False, soft_wrap=True)
            for warning in entry.outlook.warnings:
                line = f" warning: {warning}; see --set verify.images and --limit-test"
                console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
    return 0


def _checkpoint_steps(every: int | None) -> int | None:
    if every is not None and every < 1:
        raise Refused(f"--checkpoint-steps {every}: steps between checkpoints, 1 or more")
    return every


def _plain(entry: Forecast) -> dict[str, Any]:
    plain = asdict(entry)
    return plain if plain["outlook"] else {k: v for k, v in plain.items() if k != "outlook"}


def _recipe(values: dict[str, Any]) -> tuple[Recipe, Sources]:
    return resolve(flags_of(values), file=values["recipe"], settings=values["set"])


def flags_of(values: dict[str, Any]) -> dict[str, Any]:
    """What was given of the recipe's options and the method's: dotted key -> value."""
    every = [*RECIPE_OPTIONS, *RUN_OPTIONS, *PLAN_OPTIONS, *SWEEP_OPTIONS]
    own = {option.name for option in every if not option.key}
    keys = {option.name: option.key for option in RECIPE_OPTIONS if option.key}
    return {
        keys.get(name, f"options.{name}"): value
        for name, value in values.items()
        # A switch that is off was not given.
        if name not in own and value is not None and value is not False
    }
