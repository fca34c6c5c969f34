"""What faster training costs in robustness: precisions, rising attacks and single steps, on digits.

    .venv/bin/python benchmarks/fast_training.py [--quick] [--seeds 0,1,2]

Every variant hardens the same network of each seed, trained on clean images, for the 12 epochs of
the default preset; below, HARP prunes 99 % and fine-tunes as well. Robust means right under PGD of
50 steps on cross-entropy and on the margin, measured in float32 on the 359 test images. Seconds are
those of the processor, one thread. Nothing is chosen by this table.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from sections import write_section
from torch import Tensor, nn

from advprune.attacks.losses import cross_entropy, margin
from advprune.attacks.pgd_worst import pgd_worst
from advprune.data import ImageSet
from advprune.evaluate import accuracy, survival, survives
from advprune.masking import bake, hold
from advprune.method import PruningMethod, Task
from advprune.models import build
from advprune.repro import derive
from advprune.train import fit
from pipeline.beginning import begin
from pipeline.recipe import Recipe
from pipeline.resolve import resolve
from pipeline.stages.data import load_images
from pipeline.watch import Silent

RESULTS = Path(__file__).parent / "RESULTS.md"
VARIANTS: dict[str, dict[str, str]] = {
    "pgd, fp32": {"precision": "fp32", "adversarial.rise": "0"},
    "pgd, bf16": {"precision": "bf16", "adversarial.rise": "0"},
    "pgd, bf16, steps rise over half": {"precision": "bf16", "adversarial.rise": "0.5"},
    "trades, bf16": {"precision": "bf16", "objective": "trades", "adversarial.rise": "0"},
    "n-fgsm, bf16": {"precision": "bf16", "objective": "n-fgsm"},
    "fgsm-rs, bf16": {"precision": "bf16", "objective": "fgsm-rs"},
}
FLAT = {"adversarial.rise": "0", "prune.rise": "0", "finetune.rise": "0"}
CHAINS: dict[str, dict[str, str]] = {
    "HARP 99 %, fp32": {"precision": "fp32", **FLAT},
    "HARP 99 %, bf16": {"precision": "bf16", **FLAT},
    "HARP 99 %, bf16, steps rise over half": {"precision": "bf16"},
}


class Outcome(NamedTuple):
    """Of one seed; flags are bool (N,), one for each test image."""

    seconds: float
    clean: Tensor
    robust: Tensor
    overfitted: bool


def recipe_of(settings: dict[str, str], seed: int, quick: bool) -> Recipe:
    given = [f"{key}={value}" for key, value in settings.items()]
    if quick:
        given += ["limit_test=20", "attack_steps=2"]
        given += [f"{stage}.epochs=1" for stage in ("standard", "adversarial", "finetune")]
        given += ["prune.epochs=2"]
    flags = {"method": "harp", "sparsity": 0.5 if quick else 0.99, "seed": seed}
    return resolve(flags, file=None, settings=given)[0]


def hardened(recipe: Recipe, images: ImageSet, net: nn.Module) -> bool:
    """Train in place; whether the watchdog stepped in."""
    objective = recipe.robust_objective(recipe.adversarial)
    task = Task(objective, recipe.seed, images.shape)
    trained = fit(net, images, task, recipe.adversarial.schedule(), Silent())
    return any("overfitted" in row for row in trained.history)


def pruned(recipe: Recipe, images: ImageSet, net: nn.Module) -> nn.Module:
    """The network after the search and the fine-tuning."""
    method: PruningMethod = recipe.pruning_method()
    task = Task(recipe.robust_objective(recipe.prune), recipe.seed, images.shape)
    found = fit(net, images, task, recipe.prune.schedule(), Silent(), method)
    masks = method.finish(net, found.state, task)
    small = bake(net, build(begin(recipe, images).architecture))
    hold(small, masks)
    task = replace(task, objective=recipe.robust_objective(recipe.finetune))
    fit(small, images, task, recipe.finetune.schedule(), Silent())
    return small


def outcome(recipe: Recipe, images: ImageSet, start: nn.Module, *, prune: bool) -> Outcome:
    """Harden a network that was trained on clean images, and prune it if asked."""
    net = begin(recipe, images).net
    net.load_state_dict(start.state_dict())
    began = time.process_time()
    overfitted = hardened(recipe, images, net)
    if prune:
        net = pruned(recipe, images, net)
    seconds = time.process_time() - began
    robust = torch.ones(len(images.test), dtype=torch.bool)
    for loss in (cross_entropy, margin):
        attack = partial(pgd_worst, steps=50, restarts=1, loss=loss)
        robust &= survives(net, images.test, recipe.threat(), derive(recipe.seed, "test"), attack)
    return Outcome(seconds, survival(net, images.test), robust, overfitted)


def measure(seeds: Sequence[int], quick: bool) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {name: [] for name in (*VARIANTS, *CHAINS)}
    for seed in seeds:
        first = recipe_of(VARIANTS["pgd, fp32"], seed, quick)
        images = load_images(first)
        start = begin(first, images).net
        natural = Task(first.natural_objective(), seed, images.shape)
        fit(start, images, natural, first.standard.schedule(), Silent())
        for prune, variants in ((False, VARIANTS), (True, CHAINS)):
            for name, settings in variants.items():
                recipe = recipe_of(settings, seed, quick)
                found[name].append(outcome(recipe, images, start, prune=prune))
                robust = accuracy(found[name][-1].robust)
                sys.stderr.write(f"seed {seed}, {name}: {100 * robust:.1f} % robust\n")
    return found


def table(found: dict[str, list[Outcome]]) -> str:
    """Markdown, one line for each variant; differences against the first one of its group."""
    head = "variant", "seconds", "clean", "robust", "difference", "per second", "overfitted"
    lines = [f"| {' | '.join(head)} |", "|---|--:|--:|--:|--:|--:|--:|"]
    for group in (VARIANTS, CHAINS):
        reference = found[next(iter(group))]
        for name in group:
            lines.append(_line(name, found[name], reference))
    return "\n".join(lines)


def _line(name: str, outcomes: list[Outcome], reference: list[Outcome]) -> str:
    def percent(flags: Callable[[Outcome], Tensor]) -> list[float]:
        return [100 * accuracy(flags(one)) for one in outcomes]

    robust, seconds = percent(lambda one: one.robust), [one.seconds for one in outcomes]
    cells = (
        name,
        f"{statistics.mean(seconds):.1f}",
        f"{statistics.mean(percent(lambda one: one.clean)):.1f}",
        f"**{statistics.mean(robust):.1f}** ({min(robust):.1f}-{max(robust):.1f})",
        "" if outcomes is reference else difference(outcomes, reference),
        f"{statistics.mean(robust) / statistics.mean(seconds):.2f}",
        f"{sum(one.overfitted for one in outcomes)} of {len(outcomes)}",
    )
    return f"| {' | '.join(cells)} |"


def difference(outcomes: list[Outcome], reference: list[Outcome]) -> str:
    """Of robust accuracy in points, with 1.96 standard errors of the paired verdicts."""
    pairs = zip(outcomes, reference, strict=True)
    change = torch.cat([(a.robust.double() - b.robust.double()) for a, b in pairs])
    error = 1.96 * float(change.std()) / math.sqrt(len(change))
    return f"{100 * float(change.mean()):+.1f} ± {100 * error:.1f}"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="hardly any training: to try it out")
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    text = table(measure(seeds, options.quick))
    text += f"\n\nSeeds {options.seeds}, torch {torch.__version__}."
    if not options.quick:
        write_section("fast", text, RESULTS)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
