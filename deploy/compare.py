"""Two runs side by side: what differs in how they were made, and in what came out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.board_rows import place
from deploy.compare_pairs import metrics, same_images
from deploy.errors import DeployError
from deploy.gate_pairs import differences
from deploy.outcome import percent
from deploy.pages import render
from deploy.plot import curves, scatter
from deploy.report import check_schema
from deploy.verdicts import Verdicts
from deploy.words import flat, interval, size

_SHIPS = "int8"
_ABSENT, _NOTHING = "–", "{}"  # a table in which nothing is set is as good as none
_COSTS = ("compressed_bytes", "bytes", "p50_ms", "p99_ms", "throughput")


@dataclass(frozen=True)
class Side:
    """A run.

    Attributes:
        report: the content of its report.json.
        verdicts: by engine.
        sources: where the values of its recipe came from, by dotted key, as far as it is known.
    """

    name: str
    report: dict[str, Any]
    verdicts: Mapping[str, Verdicts]
    sources: Mapping[str, str]


def compare_runs(a: Side, b: Side) -> dict[str, Any]:
    """The comparison as plain values: the content of `advprune compare --json`.

    Raises:
        DeployError: 65, a report is older or lacks something; 78, they have no engine in common.
    """
    for side in (a, b):
        check_schema(side.report, f"{side.name}: its report")
    try:
        return _compared(a, b)
    except (KeyError, TypeError, AttributeError) as error:
        raise DeployError(
            f"{a.name}, {b.name}: a report lacks something ({error!r}); run the pipeline again", 65
        ) from error


def _compared(a: Side, b: Side) -> dict[str, Any]:
    engines = [{engine["name"]: engine for engine in side.report["engines"]} for side in (a, b)]
    both = sorted((n for n in engines[0] if n in engines[1]), key=lambda n: (n != _SHIPS, n))
    if not both:
        raise DeployError(f"{a.name}, {b.name}: no engine is in both of them", 78)
    places = [
        {place(engine["latency"], side.report["environment"]) for engine in side.report["engines"]}
        for side in (a, b)
    ]
    return {
        "schema": 1,
        "runs": [
            {"name": side.name, "title": side.report["title"], **_verdict(side)} for side in (a, b)
        ],
        "recipe": _recipe(a, b),
        "environment": _differing(_texts(a.report["environment"]), _texts(b.report["environment"])),
        "places": sorted(places[0] | places[1]),
        "engines": [
            _engine(
                name, (engines[0][name], engines[1][name]), (a.verdicts[name], b.verdicts[name])
            )
            for name in both
        ],
        "only": [sorted(set(engines[i]) - set(engines[1 - i])) for i in (0, 1)],
        "layers": _layers(a.report["sparsity"]["layers"], b.report["sparsity"]["layers"]),
    }


def headline(found: Mapping[str, Any]) -> str:
    """What became of the worst case of the first engine, in one line."""
    engine = found["engines"][0]
    worst = engine["metrics"][0]
    before, after = (percent(worst[side]["value"]) for side in ("a", "b"))
    said = f"{engine['name']}, worst case: A {before}, B {after}"
    test = worst["test"]
    if test is None:
        what = "images" if not engine["same_images"] else engine["protocol"][0].partition(" ")[0]
        return f"{said}: asked differently ({what}), so they are not tested against each other"
    decided = "B is better" if test["change"] > 0 else "B is worse"
    if not test["p_either_way"] < 0.05:
        decided = "not told apart"
    return f"{said}: {decided}, {change(test)} on the same {test['count']} images"


def change(test: Mapping[str, Any]) -> str:
    """From A to B in percentage points, with its interval and p."""
    low, high = 100 * test["change_low"], 100 * test["change_high"]
    p = test["p_either_way"]
    said = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return f"{100 * test['change']:+.1f} pp [{low:+.1f}, {high:+.1f}], {said}"


def render_compare(found: Mapping[str, Any], a: Side, b: Side, links: Sequence[str | None]) -> str:
    """The page of a comparison.

    Args:
        found: of `compare_runs`.
        links: addresses of the reports of both, where there are any.
    """
    threats = [side.report["threat"] for side in (a, b)]
    alike = threats[0] == threats[1] and all(e["same_images"] for e in found["engines"])
    values = {
        **found,
        "headline": headline(found),
        "links": list(links),
        "security": _security(a, b) if threats[0]["norm"] == threats[1]["norm"] else None,
        "points": _points(a, b, found["places"]) if alike else None,
        "change": change,
    }
    return render("compare.html.j2", values)


def _verdict(side: Side) -> dict[str, Any]:
    health = side.report["health"]
    valid = all(check["status"] != "INVALID" for check in health)
    return {"verdict": side.report["verdict"]["status"], "valid": valid}


def _recipe(a: Side, b: Side) -> list[dict[str, Any]]:
    differing = _differing(flat(a.report["recipe"]), flat(b.report["recipe"]))
    sides = (("source_a", a), ("source_b", b))
    return [
        {**row, **{key: side.sources.get(row["key"]) for key, side in sides}} for row in differing
    ]


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}


def _differing(a: Mapping[str, str], b: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"key": key, "a": a.get(key, _ABSENT), "b": b.get(key, _ABSENT)}
        for key in dict.fromkeys([*a, *b])
        if a.get(key) != b.get(key)
        and {a.get(key, _ABSENT), b.get(key, _ABSENT)} != {_ABSENT, _NOTHING}
    ]


def _engine(
    name: str, engines: tuple[Any, Any], verdicts: tuple[Verdicts, Verdicts]
) -> dict[str, Any]:
    a, b = verdicts
    costs = [{**engine, **engine["latency"]} for engine in engines]
    return {
        "name": name,
        "same_images": same_images(a, b),
        "same_file": a.artefact["sha256"] == b.artefact["sha256"],
        "protocol": differences(b, a, ("in B", "in A")),
        "metrics": metrics(a, b),
        "costs": [{"what": key, "a": costs[0][key], "b": costs[1][key]} for key in _COSTS],
    }


def _layers(a: Sequence[Any], b: Sequence[Any]) -> list[dict[str, Any]]:
    """The share of weights that each layer keeps, None where a run has no such layer."""
    shares = [{layer["name"]: layer["kept"] / layer["total"] for layer in side} for side in (a, b)]
    return [
        {"name": name, "a": shares[0].get(name), "b": shares[1].get(name)}
        for name in dict.fromkeys([*shares[0], *shares[1]])
    ]


def _security(a: Side, b: Side) -> dict[str, Any]:
    lines = []
    for letter, side in (("a", a), ("b", b)):
        curve = side.report["curve"]
        name = _SHIPS if _SHIPS in curve["engines"] else next(iter(curve["engines"]))
        line = {"eps": curve["eps"], "side": letter, "engine": name, **curve["engines"][name]}
        lines.append(line)
    return curves(lines, [side.report["threat"]["eps"] for side in (a, b)])


def _points(a: Side, b: Side, places: Sequence[str]) -> dict[str, Any]:
    points = []
    for letter, side in (("a", a), ("b", b)):
        for engine in side.report["engines"]:
            speed, worst = engine["latency"], engine["worst"]
            points.append(
                {
                    "run": letter,
                    "side": letter,
                    "rank": f"{letter.upper()} {engine['name']}",
                    "cost": speed["p50_ms"],
                    "worth": worst,
                    "place": places.index(place(speed, side.report["environment"])),
                    "label": f"{letter.upper()}, {engine['name']}: worst case "
                    f"{percent(worst['value'])} {interval(worst)}, {speed['p50_ms']:.3g} ms, "
                    f"{size(engine['compressed_bytes'])}",
                }
            )
    return scatter(points, lambda ms: f"{ms:g}")
