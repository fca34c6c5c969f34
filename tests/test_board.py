"""A board ranks what can be compared and nothing else, and nothing that a run is named can act."""

import base64
import hashlib
import json
import re
import webbrowser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_runs import derived, report, row, verdicts
from hypothesis import given
from hypothesis import strategies as st
from test_report import Page
from tiny_run import Tiny, advprune, refusal

from deploy.board import parts, render_board
from deploy.board_rows import PUBLISHED, add_benchmark, measured, published
from deploy.errors import DeployError
from deploy.plot import Axis, pareto, scatter
from deploy.statistics import share

pytest_plugins = ["tiny_fixtures"]

FACTS = {"run": "r", "date": "2026-01-31", "when": "after"}
HOSTILE = "<script>alert(1)</script>\"'&{{ 7*7 }}"


def page_of(*rows: dict[str, Any], **of: Any) -> str:
    return render_board(list(rows), of.get("skipped", []), of.get("links", {}))


def test_a_row_says_what_the_report_says() -> None:
    found = row("r", worst=300, p50_ms=0.05, compressed=17_000, seed=3)
    assert found["method"] == "harp"
    assert found["structure"] == "US"
    assert found["worst"] == share([i < 300 for i in range(400)])
    assert found["float_worst"] == found["worst"]
    assert (found["p50_ms"], found["compressed_bytes"], found["seed"]) == (0.05, 17_000, 3)
    assert found["autoattack"] is None
    assert found["ho_fmn"] is None
    assert found["valid"]
    assert "onnxruntime 1.31.1 cpu, 1 thread" in found["place"]


@pytest.mark.parametrize("unit", ["channel", "filter", "2:4"])
def test_structure_is_told_in_the_benchmarks_letters(unit: str) -> None:
    structured = report(options={"granularity": unit})
    structured["structure"] = None if unit == "2:4" else {"groups": []}
    found = measured(structured, verdicts(), FACTS)["structure"]
    assert found == (unit if unit == "2:4" else f"S {unit}")


def test_autoattack_counts_where_it_was_run() -> None:
    attacked = report()
    attacked["engines"][1]["attacks"]["autoattack@int8-twin"] = share([True] * 3 + [False])
    assert measured(attacked, verdicts(), FACTS)["autoattack"]["value"] == 0.75


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("schema", 0, "schema is 0"),
        ("engines", [], "lacks 'int8'"),
        ("recipe", {"method": "harp"}, "lacks 'verify'"),
        ("recipe", "harp", "is off"),
        ("images", "many", "images must be a positive integer"),
        ("health", None, "is off"),
        ("verdict", {"status": "MAYBE", "lines": []}, "must be a verdict"),
        ("sparsity", {"asked": 90, "got": 0.9}, "asked must be a share"),
    ],
)
def test_an_older_report_is_refused_in_one_line(key: str, value: Any, says: str) -> None:
    with pytest.raises(DeployError, match=re.escape(says)) as refused:
        measured(report() | {key: value}, verdicts(), FACTS)
    assert refused.value.exit_code == 65


def test_only_what_was_asked_alike_is_ranked_together() -> None:
    rows = [
        row("a", 320),
        row("b", 340, seed=1, protocol={"seed": 1}),
        row("other eps", 350, eps=0.1, protocol={"threat": {"norm": "linf", "eps": 0.1}}),
        row("other images", 350, protocol={"images": "9" * 64}),
        row("other attacks", 350, protocol={"attacks": [{"name": "pgd-ce@finetuned", "steps": 9}]}),
        row("other data", 350, protocol={"data": "9" * 64}),
    ]
    seen = report(verify={"suite": "standard", "split": "train", "images": None})
    rows.append(measured(seen, verdicts(350), FACTS | {"run": "training images"}))
    found = parts(rows)
    runs = [[one["run"] for one in part["rows"]] for part in found]
    assert runs[0] == ["b", "a"]
    assert [one["rank"] for one in found[0]["rows"]] == [1, 2]
    assert sorted(map(len, runs)) == [1] * 5 + [2]
    assert all(part["rows"][0]["rank"] == 1 for part in found)
    assert len({part["title"] for part in found}) == len(found), "titles tell protocols apart"


def test_equals_share_a_rank_and_the_invalid_have_none() -> None:
    invalid = report(350)
    invalid["health"][0]["status"] = "INVALID"
    rows = [row("a", 300), row("b", 320), row("c", 320), row("d", 310)]
    rows.append(measured(invalid, verdicts(350), FACTS | {"run": "e"}))
    (part,) = parts(rows)
    assert [(one["run"], one["rank"]) for one in part["rows"]] == [
        ("b", 1),
        ("c", 1),
        ("d", 3),
        ("a", 4),
        ("e", None),
    ]
    html = page_of(*rows)
    assert html.count("not valid") == 1
    assert html.count('<g class="point') == 2 * 4


def test_seeds_of_a_setting_have_a_mean_and_a_spread() -> None:
    worst = [300, 310, 335]
    rows = [row(f"s{i}", w, seed=i, protocol={"seed": i}) for i, w in enumerate(worst)]
    rows.append(row("again", 200, seed=0, sparsity=0.99))
    rows.append(row("other threads", 320, seed=4, threads=2))
    (part,) = parts(rows)
    (line,) = part["seeds"]
    values = np.array([*worst, 320]) / 400
    assert line["tried"] == "0, 1, 2, 4"
    assert line["spread"]["worst"]["mean"] == pytest.approx(values.mean())
    assert line["spread"]["worst"]["deviation"] == pytest.approx(values.std(ddof=1))
    assert f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1):.1f} %" in page_of(*rows)


SMALL = st.integers(min_value=1, max_value=6).map(float)


@given(st.lists(st.tuples(SMALL, SMALL), max_size=12))
def test_the_front_is_that_of_brute_force(points: list[tuple[float, float]]) -> None:
    def beaten(mine: tuple[float, float]) -> bool:
        return any(
            cost <= mine[0] and worth >= mine[1] and (cost, worth) != mine for cost, worth in points
        )

    front = pareto(points)
    assert sorted(front) == [i for i, point in enumerate(points) if not beaten(point)]
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


@given(st.lists(st.tuples(st.floats(1e-3, 1e6), st.floats(0, 1)), min_size=1, max_size=20))
def test_a_drawing_keeps_the_order_and_stays_inside(pairs: list[tuple[float, float]]) -> None:
    points = [
        {"cost": cost, "place": 0, "worth": {"value": w, "low": w * 0.9, "high": min(1, w + 0.05)}}
        for cost, w in pairs
    ]
    plot = scatter(points, str)
    for point in plot["points"]:
        assert plot["left"] <= point["x"] <= plot["right"]
        assert plot["top"] <= point["high"] <= point["y"] <= point["low"] <= plot["bottom"]
    across = [p["x"] for p in sorted(plot["points"], key=lambda p: p["cost"])]
    assert across == sorted(across)
    assert any(point["on"] for point in plot["points"])
    for x, _ in plot["columns"]:
        assert plot["left"] <= x <= plot["right"]


def test_an_axis_has_round_ticks() -> None:
    assert Axis(0.061, 0.098, 0, 1).ticks() == pytest.approx([0.07, 0.08, 0.09])
    assert Axis(12_000, 90_000, 0, 1, log=True).ticks() == pytest.approx([20_000, 50_000])
    assert Axis(0.02, 30, 0, 1, log=True).ticks() == pytest.approx([0.1, 1, 10])


def test_latencies_of_two_places_have_a_front_each() -> None:
    slow = row("slow", 300, p50_ms=0.09)
    slow["place"] = "another machine"
    html = page_of(row("fast", 320, p50_ms=0.08), slow)
    assert [html.count(f'class="front" data-place="{place}"') for place in (0, 1)] == [2, 1]
    assert "measured in 2 places" in html


def test_the_published_rows_are_the_benchmarks_and_stand_apart() -> None:
    rows, notes = published()
    assert len(rows) == 154
    by_key = {
        (r["data"], r["network"], r["structure"], r["sparsity"], r["method"]): r for r in rows
    }
    assert len(by_key) == len(rows)
    harp = by_key["cifar10", "ResNet18", "US", 0.99, "HARP"]
    assert (harp["clean"], harp["autoattack"], harp["when"]) == (0.8311, 0.455, "after")
    assert by_key["svhn", "VGG16", "S", 0.9, "TwinRep"]["autoattack"] == 0.4483
    best = max(
        (
            r
            for r in rows
            if r["structure"] == "US"
            and r["data"] == "cifar10"
            and r["network"] == "ResNet18"
            and r["sparsity"] == 0.9
        ),
        key=lambda r: r["autoattack"],
    )
    assert best["method"] == "FlyingBird"
    assert all(0 < r["autoattack"] < r["clean"] < 1 for r in rows)
    assert any("2024-09-05" in note for note in notes)
    assert any("eps 0.031" in note for note in notes)
    assert PUBLISHED.suffix == ".csv"
    html = page_of(row("a"))
    before, after = html.split('id="published"')
    assert 'data-source="published"' not in before
    assert after.count('data-source="published"') == 154
    assert "<svg" not in after
    assert "Published, not measured here" in after


def test_the_page_can_load_nothing_and_run_its_own_script_alone() -> None:
    html = page_of(row("a"), links={"a": "a/report.html"})
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "base"}
    names = {name for _, attributes in page.tags for name in attributes}
    assert not names & {"src", "style", "srcset", "action", "background"}
    assert not [name for name in names if name.startswith("on")]
    assert [a["href"] for _, a in page.tags if "href" in a] == ["a/report.html"]
    digests = {}
    for tag in ("style", "script"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests[tag] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert not re.search(r"https?:|url\(|@import|fetch|eval|innerHTML", text)
    policy = next(x["content"] for _, x in page.tags if "http-equiv" in x)
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digests['style']}'; "
        f"script-src 'sha256-{digests['script']}'; base-uri 'none'; form-action 'none'"
    )


def test_names_cannot_become_markup() -> None:
    hostile = row(HOSTILE, model=HOSTILE, data=HOSTILE, method=HOSTILE)
    skipped = [{"run": HOSTILE, "why": HOSTILE}]
    ours = Page(page_of(row("a"), skipped=[{"run": "x", "why": "y"}]))
    theirs = Page(page_of(hostile, skipped=skipped))
    # The method and the data are choices of the filter, and the imaginary ones are new.
    tags = [[tag for tag, _ in page.tags if tag != "option"] for page in (ours, theirs)]
    assert tags[0] == tags[1]
    assert "49" not in "".join(theirs.text["skipped"])


def test_without_its_script_the_page_is_plain_tables() -> None:
    rows = [row(f"run {i}", 250 + i) for i in range(5)]
    html = page_of(*rows).split("<script>")[0]
    page = Page(html)
    body_rows = [a for tag, a in page.tags if tag == "tr" and "data-source" in a]
    assert len(body_rows) == 5 + 154
    assert not [a for tag, a in page.tags if "hidden" in a and tag != "form"]
    assert not [tag for tag, _ in page.tags if tag == "button"]
    labels = [a.get("aria-label") for tag, a in page.tags if tag in ("svg", "g")]
    assert all(labels)
    assert len(labels) == 2 + 2 * 5


def test_a_page_of_many_runs_stays_small() -> None:
    rows = [row(f"digits_resnet_harp_s0.9_seed{i}", 100 + i % 200, seed=i) for i in range(250)]
    assert len(page_of(*rows).encode()) < 1_000_000


def test_numbers_of_the_benchmark_belong_to_their_file() -> None:
    found: dict[str, Any] = {"target": {"sha256": "a" * 64}}
    found["apb"] = {"autoattack": share([True, False]), "ho_fmn": {"robust": share([True])}}
    mine = row("a")
    add_benchmark(mine, found, "a" * 64)
    assert mine["autoattack"]["value"] == 0.5
    assert mine["ho_fmn"]["value"] == 1.0
    html = page_of(mine)
    assert "HO-FMN" in html.split('id="published"')[0]
    assert "HO-FMN" not in page_of(row("a")).split('id="published"')[0]
    with pytest.raises(DeployError, match="of another file"):
        add_benchmark(mine, found, "b" * 64)
    for broken in ({}, {"target": 3}, found | {"apb": {"autoattack": 0.5, "ho_fmn": None}}):
        with pytest.raises(DeployError) as refused:
            add_benchmark(row("a"), broken, "a" * 64)
        assert refused.value.exit_code == 65


@pytest.fixture
def runs(tiny: Tiny, tmp_path: Path) -> Path:
    """Two finished runs, a link to one, and four folders that are none."""
    folder = tmp_path / "runs"
    folder.mkdir()
    derived(tiny, folder / "a")
    derived(tiny, folder / "b", report=lambda r: r["recipe"].update(method="hydra", seed=1))
    (folder / "latest").symlink_to("b")
    derived(tiny, folder / "old", report=lambda r: r.update(schema=0))
    (derived(tiny, folder / "damaged", report=lambda r: r) / "09_report").unlink()
    (folder / "damaged" / "09_report").symlink_to(folder / "nowhere")
    half = derived(tiny, folder / "half")
    for stage in ("08_gate", "09_report", "10_bundle"):
        (half / stage).unlink()
    (folder / "my notes").mkdir()
    (folder / ".hidden").mkdir()
    (folder / "store").mkdir()
    (folder / "board.txt").write_text("x")
    return folder


def test_the_command_makes_the_board_of_what_is_finished(runs: Path, tiny: Tiny) -> None:
    result = advprune("board", runs)
    assert result.code == 0, result
    assert str(runs / "board.html") in result.out
    left = [line for line in result.out.splitlines() if line.startswith("left out")]
    for line, (name, says) in zip(
        left,
        [
            ("damaged", "not a manifest"),
            ("half", "it has no report"),
            ("my notes", "not a finished run"),
            ("old", "schema is 0"),
        ],
        strict=True,
    ):
        assert line.startswith(f"left out {name}: ")
        assert says in line
    document = advprune("board", runs, "--json").json
    assert [one["run"] for one in document["rows"]] == ["a", "b"]
    assert [one["run"] for one in document["skipped"]] == ["damaged", "half", "my notes", "old"]
    assert len(document["published"]) == 154
    real = tiny.report["engines"]
    ships = next(engine for engine in real if engine["name"] == "int8")
    assert document["rows"][0]["worst"] == ships["worst"]
    assert document["rows"][0]["when"] == "after"
    html = (runs / "board.html").read_text()
    assert 'href="a/report.html"' not in html, "the copy has no page of its own"
    assert "my notes" in html


def test_the_report_of_a_run_is_a_click_away(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "a b" / "page.html"
    out.parent.mkdir()
    assert advprune("board", tiny.runs, "--out", out).code == 0
    addresses = re.findall(r'<a href="([^"]+)"', out.read_text())
    # Other tests may have made runs beside it.
    reports = [(out.parent / address).resolve() for address in addresses]
    assert (tiny.run / "report.html").resolve() in reports


def test_runs_can_be_named_one_by_one(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    document = advprune("board", runs / "a", runs / "b", "--out", out, "--json").json
    assert [one["run"] for one in document["rows"]] == [str(runs / "a"), str(runs / "b")]
    assert document["skipped"] == []


def test_the_benchmarks_numbers_beside_a_run_are_taken_in(runs: Path) -> None:
    ships = json.loads((runs / "a" / "07_verify" / "verdicts.int8.json").read_text())
    numbers = {"autoattack": share([True, False]), "ho_fmn": None}
    result = {"target": {"sha256": ships["artefact"]["sha256"]}, "apb": numbers}
    (runs / "a" / "apb.json").write_text(json.dumps(result))
    (runs / "b" / "apb.json").write_text("[")
    document = advprune("board", runs, "--json").json
    found = {one["run"]: one["autoattack"] for one in document["rows"]}
    assert found == {"a": numbers["autoattack"], "b": None}
    said = {one["run"]: one["why"] for one in document["skipped"]}
    assert "not a JSON document" in said["b/apb.json"]


def test_what_cannot_become_a_board(tmp_path: Path, runs: Path) -> None:
    assert "no such folder" in refusal(advprune("board", tmp_path / "none"), 66)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "make one with `advprune run`" in refusal(advprune("board", empty), 66)
    said = refusal(advprune("board", runs / "my notes", runs / "half"), 66)
    assert "no finished run" in said
    assert "it has no report" in said
    assert "is a folder" in refusal(advprune("board", runs, "--out", runs), 73)
    assert "no such folder" in refusal(advprune("board", runs, "--out", runs / "x" / "y"), 73)
    assert not list(empty.iterdir())


def test_the_page_is_opened_on_request_alone(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: bool(shown.append(address)))
    assert advprune("board", runs).code == 0
    assert shown == []
    result = advprune("board", runs, "--open")
    assert shown == [(runs / "board.html").as_uri()]
    assert result.code == 0
    assert "no browser" in result.err
