"""Two engines image by image, where their verdicts came about alike. Standard library only."""

from typing import Any

from deploy.errors import DeployError
from deploy.outcome import Comparison
from deploy.verdicts import Verdicts, canonical

PRIMARY = "worst"
_HERE_AND_THERE = ("here", "there")


def compare(candidate: Verdicts, other: Verdicts, against: str) -> list[Comparison]:
    """Pair the verdicts of two engines: "worst" first, then "clean" and every attack.

    Raises:
        DeployError: 12, the protocols or precisions differ; the message names the first ones.
    """
    _refuse(differences(candidate, other), against)
    return _pairs(candidate, other, against)


def drop_from_float(candidate: Verdicts, fp32: Verdicts) -> list[Comparison]:
    """The same between two engines of one run, of any precision: what quantisation cost.

    Raises:
        DeployError: 12, the protocols differ, or both verdicts are of the same file.
    """
    if candidate.artefact["sha256"] == fp32.artefact["sha256"]:
        raise DeployError(
            f"gate: both verdicts are of {candidate.artefact['file']}; pass those of two engines",
            12,
        )
    against = fp32.artefact["precision"]
    _refuse(_differing(_flat(candidate.protocol), _flat(fp32.protocol)), against)
    return _pairs(candidate, fp32, against)


def differences(
    candidate: Verdicts, other: Verdicts, names: tuple[str, str] = _HERE_AND_THERE
) -> list[str]:
    """The settings in which two protocols differ, precision included, each with both values.

    Args:
        names: what to call the candidate's side and the other.
    """
    return _differing(
        {("precision",): candidate.artefact["precision"], **_flat(candidate.protocol)},
        {("precision",): other.artefact["precision"], **_flat(other.protocol)},
        names,
    )


def _refuse(differing: list[str], against: str) -> None:
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        verb = "differs" if len(differing) == 1 else "differ"
        raise DeployError(
            f"gate: cannot compare with {against}: {', '.join(differing[:3])}{more} {verb}; "
            "verify both alike, or accept a new baseline",
            12,
        )


def _pairs(candidate: Verdicts, other: Verdicts, against: str) -> list[Comparison]:
    if candidate.count != other.count:
        raise DeployError(
            f"gate: cannot compare with {against}: {other.count} images there, "
            f"{candidate.count} here; verify both on the same images",
            12,
        )
    flags, others = candidate.flags, other.flags
    return [
        _pair(name, against, flags[name], others[name]) for name in (PRIMARY, *candidate.correct)
    ]


def _pair(metric: str, against: str, here: list[bool], there: list[bool]) -> Comparison:
    return Comparison(
        metric,
        against,
        count=len(here),
        before=sum(there) / len(there),
        after=sum(here) / len(here),
        worse=sum(b and not a for a, b in zip(here, there, strict=True)),
        better=sum(a and not b for a, b in zip(here, there, strict=True)),
    )


Settings = dict[tuple[str, ...], object]  # path -> value


def _differing(
    here: Settings, there: Settings, names: tuple[str, str] = _HERE_AND_THERE
) -> list[str]:
    return [
        f"{'.'.join(key)} ({there.get(key, 'absent')} {names[1]}, "
        f"{here.get(key, 'absent')} {names[0]})"
        for key in sorted(here | there)
        if (key in here) != (key in there) or canonical(here[key]) != canonical(there[key])
    ]


def _flat(protocol: dict[str, Any]) -> Settings:
    """Every setting of a protocol by its path; attacks by their name, and their order."""
    flat: Settings = {}
    for key, value in protocol.items():
        if key == "attacks":
            flat[(key,)] = [attack["name"] for attack in value]
            for attack in value:
                flat |= {(key, attack["name"], k): x for k, x in attack.items() if k != "name"}
        elif isinstance(value, dict):
            flat |= {(key, name): x for name, x in value.items()}
        else:
            flat[(key,)] = value
    return flat
