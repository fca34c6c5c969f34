"""How much faster the attacks are than those of two libraries, and who breaks what -> results.md.

    .venv/bin/python benchmarks/attacks.py --run runs/latest    # a finished run

The fine-tuned float network of the run, on the CPU. The libraries get it as it is, in eval mode;
ours get it folded, and folding is timed. Both attack the same images in one batch with the same
settings. One process, one thread: a round times every attack once, ours and theirs in turn, and
the next round backwards and from another seed. All verdicts are the plain network's.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
import torchattacks
from pyautoattack import AutoAttack
from pyautoattack.autoattack import AttackName
from sections import write_section
from torch import Tensor, nn

from advprune.attacks.apgd import apgd
from advprune.attacks.apgd_t import apgd_t
from advprune.attacks.autoattack import autoattack
from advprune.attacks.fab_t import fab_t
from advprune.attacks.pgd import pgd
from advprune.attacks.square import square
from advprune.data import Split, as_float
from advprune.errors import Refused
from advprune.evaluate import is_correct, predict
from advprune.folding import folded
from advprune.repro import ImageRandom
from advprune.types import Classifier, Images, Labels, Norm, Threat
from deploy.errors import DeployError
from deploy.replay import classifier
from deploy.runtime import load
from pipeline.commands.results import context_of
from pipeline.stages.export import engines_of
from pipeline.stages.training import images_of, network_of

NORMS: dict[Norm, Literal["Linf", "L2"]] = {"linf": "Linf", "l2": "L2"}


@dataclass(frozen=True)
class Case:
    """What is attacked, and with what effort."""

    net: nn.Module  # in eval mode
    engine: Classifier  # its exported file
    split: Split
    threat: Threat
    steps: int  # of gradient attacks; of targeted ones, for each target
    queries: int  # of Square
    targets: int  # of targeted attacks

    @property
    def shown(self) -> tuple[Images, Labels]:
        return as_float(self.split.images), self.split.labels

    @property
    def classes(self) -> int:
        return self.targets + 1

    def settings(self, fields: dict[str, str]) -> dict[str, Any]:
        """Keywords of an attack, each with what the case has of that name."""
        return {keyword: getattr(self, name) for keyword, name in fields.items()}


# A case and a seed -> adversarial images.
Side = Callable[[Case, int], Images]


class Timed(NamedTuple):
    """One call of one side."""

    seconds: float
    right: Tensor  # bool (N,): the images that still are


def _ours(attack: Callable[..., Images], **fields: str) -> Side:
    def run(case: Case, seed: int) -> Images:
        x, y = case.shown
        rng = ImageRandom(seed, case.split.indices)
        return attack(folded(case.net, x[:8]), x, y, case.threat, rng, **case.settings(fields))

    return run


def _pyautoattack(*names: AttackName) -> Side:
    def run(case: Case, seed: int) -> Images:
        x, y = case.shown
        whole = AutoAttack(case.net, eps=case.threat.eps, norm=NORMS[case.threat.norm], seed=seed)
        whole.attacks_to_run = list(names)
        for part in (whole.apgd, whole.apgd_targeted, whole.fab):
            part.n_iter = case.steps
        for part in (whole.apgd, whole.apgd_targeted):
            # Its checkpoints are those of the steps that it was built with.
            part.n_iter_2, part.n_iter_min, part.size_decr = (
                max(int(share * case.steps), 1) for share in (0.22, 0.06, 0.03)
            )
        for part in (whole.apgd_targeted, whole.fab):
            part.n_target_classes = case.targets
        whole.square.n_queries = case.queries
        return whole.run_standard_evaluation(x, y, batch_size=len(x))[0]

    return run


def _torchattacks(kind: Callable[..., Any], **fields: str) -> Side:
    def run(case: Case, seed: int) -> Images:
        norm, eps = NORMS[case.threat.norm], case.threat.eps
        return kind(case.net, norm=norm, eps=eps, seed=seed, **case.settings(fields))(*case.shown)

    return run


def _their_pgd(case: Case, seed: int) -> Images:
    """The one that takes neither a norm nor a seed."""
    torch.manual_seed(seed)
    kind = torchattacks.PGD if case.threat.norm == "linf" else torchattacks.PGDL2
    eps, alpha = case.threat.eps, 2.5 * case.threat.eps / case.steps
    return kind(case.net, eps=eps, alpha=alpha, steps=case.steps)(*case.shown)


_APGD = _ours(apgd, steps="steps")
_APGD_T, _FAB_T = (_ours(kind, steps="steps", targets="targets") for kind in (apgd_t, fab_t))
_WHOLE = {"steps": "steps", "targets": "targets", "queries": "queries"}
_CLASSES = {"steps": "steps", "n_classes": "classes"}
_STANDARD = _pyautoattack("apgd-ce", "apgd-t", "fab-t", "square")
# The lines of the table: ours and theirs. A side may belong to several.
PARTS: dict[str, tuple[Side, Side]] = {
    "pyautoattack:apgd-ce": (_APGD, _pyautoattack("apgd-ce")),
    "pyautoattack:apgd-t": (_APGD_T, _pyautoattack("apgd-t")),
    "pyautoattack:fab-t": (_FAB_T, _pyautoattack("fab-t")),
    "pyautoattack:square": (
        # The standard version's schedule, whatever the queries.
        _ours(partial(square, schedule=10_000), queries="queries"),
        _pyautoattack("square"),
    ),
    "pyautoattack:standard": (_ours(autoattack, **_WHOLE), _STANDARD),
    "pyautoattack:standard-engine": (_ours(autoattack, **_WHOLE, scores="engine"), _STANDARD),
    "torchattacks:PGD": (_ours(pgd, steps="steps"), _their_pgd),
    "torchattacks:APGD": (_APGD, _torchattacks(torchattacks.APGD, steps="steps")),
    "torchattacks:APGDT": (_APGD_T, _torchattacks(torchattacks.APGDT, **_CLASSES)),
    "torchattacks:FAB": (
        _FAB_T,
        _torchattacks(partial(torchattacks.FAB, multi_targeted=True), **_CLASSES),
    ),
    "torchattacks:Square": (
        _ours(square, queries="queries"),
        _torchattacks(torchattacks.Square, n_queries="queries"),
    ),
}


def measure(case: Case, names: Iterable[str], rounds: int) -> dict[Side, list[Timed]]:
    """Time every side of these lines once in each round."""
    found: dict[Side, list[Timed]] = {side: [] for name in names for side in PARTS[name]}
    for side in found:
        # With next to no effort first: what torch sets up at its first call is nobody's time.
        _timed(side, replace(case, steps=1, queries=1), 0)
    for seed in range(rounds):
        for side in found if seed % 2 == 0 else reversed(found):
            found[side].append(_timed(side, case, seed))
    return found


def _timed(side: Side, case: Case, seed: int) -> Timed:
    with torch.random.fork_rng():  # the libraries seed the whole process
        started = time.perf_counter()
        adversarial = side(case, seed)
        seconds = time.perf_counter() - started
    return Timed(seconds, is_correct(predict(case.net, adversarial), case.split.labels))


def table(names: Iterable[str], found: Mapping[Side, Sequence[Timed]]) -> str:
    """Medians over the rounds; of ratios, taken within each round, and of counts the range."""
    lines = [
        "| library | attack | ours, s | theirs, s | speed-up | right after ours | after theirs "
        "| broken by ours only | by theirs only |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in names:
        sides = [found[side] for side in PARTS[name]]
        both = list(zip(*sides, strict=True))
        ratios = [theirs.seconds / ours.seconds for ours, theirs in both]
        cells = [
            *name.split(":"),
            *(f"{median(t.seconds for t in side):.1f}" for side in sides),
            f"**{median(ratios):.1f}** ({min(ratios):.1f}-{max(ratios):.1f})",
            *(
                f"{100 * median(t.right.double().mean().item() for t in side):.1f} %"
                for side in sides
            ),
            _range([int((theirs.right & ~ours.right).sum()) for ours, theirs in both]),
            _range([int((ours.right & ~theirs.right).sum()) for ours, theirs in both]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _range(counts: Sequence[int]) -> str:
    return "-".join(str(count) for count in sorted({min(counts), max(counts)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/latest"))
    for word, default in {"images": 359, "rounds": 3, "steps": 100, "queries": 5000}.items():
        parser.add_argument(f"--{word}", type=int, default=default)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART")
    options = parser.parse_args()
    started, load_average = time.monotonic(), os.getloadavg()[0]
    try:
        context = context_of(options.run)
        images = images_of(context).to("cpu")
        case = Case(
            network_of(context, "finetune").cpu().eval(),
            classifier(load(engines_of(context["export"].check())["fp32"])),
            images.test.first(options.images),
            context.recipe.threat(),
            options.steps,
            options.queries,
            min(9, len(images.classes) - 1),
        )
    except (Refused, DeployError) as error:
        parser.exit(error.exit_code, f"attacks: {error}\n")
    torch.set_num_threads(1)
    logging.getLogger("auto-attack").setLevel(logging.ERROR)  # it warns of every zero gradient
    found = measure(case, options.parts, options.rounds)
    how = (
        f"{options.run.resolve().name}: {len(case.split)} images, eps {case.threat.eps:g} "
        f"({case.threat.norm}); {case.steps} steps, {case.queries:,} queries; {options.rounds} "
        f"rounds; load average {load_average:.1f} before, {os.getloadavg()[0]:.1f} after"
    )
    text = f"{table(options.parts, found)}\n\n{how}"
    sys.stdout.write(f"{text}\nin {(time.monotonic() - started) / 60:.1f} minutes\n")
    write_section("attacks", text)


if __name__ == "__main__":
    main()
