"""What two engines got right, metric by metric; paired where both were asked the same.

A number about pairs is given only where both engines saw the same images under the same attack,
seed included. Where they did not, each keeps its own interval and no test is made of the two.
"""

from dataclasses import replace
from typing import Any

from deploy.gate_pairs import PRIMARY, compare
from deploy.outcome import Comparison
from deploy.statistics import mcnemar_exact, share, tango
from deploy.verdicts import Verdicts, canonical

_IMAGES = ("data", "images", "labels", "input")


def metrics(a: Verdicts, b: Verdicts) -> list[dict[str, Any]]:
    """The worst case, then the clean images, then every attack of either.

    Returns:
        For each: "metric"; "a" and "b", shares with 95 % Clopper-Pearson intervals, None where the
        engine was not asked; and "test", None where the two cannot be paired.
    """
    tests = {row.metric: _test(row) for row in paired(a, b)}
    names = [PRIMARY, *dict.fromkeys([*a.correct, *b.correct])]
    left, right = ({name: share(x) for name, x in v.flags.items()} for v in (a, b))
    return [
        {
            "metric": name,
            "a": left.get(name),
            "b": right.get(name),
            "test": tests.get(name),
        }
        for name in names
    ]


def paired(a: Verdicts, b: Verdicts) -> list[Comparison]:
    """From a to b: every metric that came about alike on the same images.

    Clean images need the same images alone; an attack also the same threat, seed and settings; and
    the worst case all of the same attacks.
    """
    if not same_images(a, b) or a.artefact["precision"] != b.artefact["precision"]:
        return []
    attacks = [_attacks(v) if same_threat(a, b) else {} for v in (a, b)]
    alike = [name for name in attacks[0] if attacks[0][name] == attacks[1].get(name)]
    common = {
        "threat": a.protocol["threat"],
        "seed": a.protocol["seed"],
        "attacks": [{"name": name} for name in alike],
    }
    before, after = (
        replace(
            v,
            protocol={**v.protocol, **common},
            correct={name: v.correct[name] for name in ("clean", *alike)},
        )
        for v in (a, b)
    )
    rows = compare(after, before, "a")
    whole = same_threat(a, b) and len(alike) == len(attacks[0]) == len(attacks[1])
    return [row for row in rows if whole or row.metric != PRIMARY]


def same_images(a: Verdicts, b: Verdicts) -> bool:
    """Whether both were shown the same images, with the same labels, in the same form."""
    return a.count == b.count and all(a.protocol[key] == b.protocol[key] for key in _IMAGES)


def same_threat(a: Verdicts, b: Verdicts) -> bool:
    return all(a.protocol[key] == b.protocol[key] for key in ("threat", "seed"))


def _attacks(verdicts: Verdicts) -> dict[str, bytes]:
    return {attack["name"]: canonical(attack) for attack in verdicts.protocol["attacks"]}


def _test(row: Comparison) -> dict[str, Any]:
    """The comparison with what concerns either direction: McNemar's p and Tango's interval."""
    tails = mcnemar_exact(row.worse, row.better), mcnemar_exact(row.better, row.worse)
    low, high = tango(row.worse, row.better, row.count, confidence=0.95)
    return {
        **row.to_dict(),
        "change": (row.better - row.worse) / row.count,
        "change_low": -high,
        "change_high": -low,
        "p_either_way": min(1.0, 2 * min(tails)),
    }
