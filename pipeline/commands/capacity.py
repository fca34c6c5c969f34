"""`advprune plan` with `--gpus`, `--images` or `--link`: what a training at scale would take."""

import json
import math
import sys
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

from advprune.errors import Refused
from deploy.words import duration, size
from pipeline.capacity import ASSUMED, Estimate, Link, estimate, link_of, total
from pipeline.devices import resolve_device
from pipeline.plan import plan
from pipeline.probe import PROBED, works
from pipeline.recipe import Recipe
from pipeline.stages.data import sample_images

_COLUMNS = ("computing", "waiting", "together", "efficiency", "steps", "sent a step", "sent")


def plan_capacity(recipe: Recipe, values: dict[str, Any]) -> int:
    """Print the estimate of every stage that trains; nothing is looked up, made or kept.

    Raises:
        Refused: less than one GPU or image, no such link, or batches too small to be shared.
    """
    ranks = 1 if values["gpus"] is None else values["gpus"]
    count = values["images"]
    for option, number in (("gpus", ranks), ("images", count)):
        if number is not None and number < 1:
            raise Refused(f"--{option} {number}: give 1 or more")
    link = link_of(values["link"] or ASSUMED)
    plan(recipe)  # what is wrong with it is said before anything is tried
    images, sizes = sample_images(recipe, PROBED)
    count = count or sizes["train"]
    stages = [estimate(work, ranks, link) for work in works(recipe, images, count)]
    settings = recipe.verify.settings(recipe.seed)
    judged = min(sizes[recipe.verify.split], settings.images)
    shares = min(ranks, math.ceil(judged / settings.batch_size))
    assumed = {
        "gpus": ranks,
        "images": count,
        "link": asdict(link),
        "device": resolve_device(recipe.device),
        "threads": torch.get_num_threads(),
        "ranks_that_verify": shares,
    }
    every = [*stages, total(stages, ranks)]
    if values["as_json"]:
        document = {**assumed, "stages": [_plain(one) for one in every[:-1]]}
        sys.stdout.write(json.dumps({**document, "total": _plain(every[-1])}) + "\n")
        return 0
    console = Console()
    console.print(recipe.title(recipe.device), style="bold", highlight=False, markup=False)
    _show(every, console)
    for line in (*_said(assumed, link), _verified(judged, settings.batch_size, shares, ranks)):
        console.print(f" {line}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _plain(one: Estimate) -> dict[str, Any]:
    derived = ("seconds", "efficiency", "sent_per_step")
    return {**asdict(one), **{name: getattr(one, name) for name in derived}}


def _show(every: list[Estimate], console: Console) -> None:
    console.print(" " * 12 + "".join(map(_right, _COLUMNS)), highlight=False, soft_wrap=True)
    for one in every:
        cells = (
            *map(duration, (one.computing, one.communicating, one.seconds)),
            f"{100 * one.efficiency:.0f} %",
            f"{one.steps:,}",
            size(one.sent_per_step),
            size(one.sent),
        )
        row = f" {one.name:<11}{''.join(map(_right, cells))}"
        console.print(row, highlight=False, soft_wrap=True)


def _right(cell: str) -> str:
    return f"{cell:>12}"


def _said(assumed: dict[str, Any], link: Link) -> list[str]:
    return [
        f"{assumed['gpus']} GPUs, {assumed['images']:,} images; one step was measured here "
        f"({assumed['device']}, threads: {assumed['threads']}), all else is computed",
        f"{link.name}: {link.rate / 1e9:g} GB/s each way, {1e6 * link.base:g} microseconds for a "
        f"message and {1e6 * link.hop:g} for a hop; waiting: until all have the sums",
        "not in it: reading images, optimiser, masks, surveys, validation, and other stages",
    ]


def _verified(judged: int, batch: int, shares: int, ranks: int) -> str:
    return (
        f"verify is not in it either; its {judged:,} images, {batch} at a time, give {shares} of "
        f"{ranks} GPUs something to attack"
    )
