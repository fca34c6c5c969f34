"""Two runs are compared in pairs where they were asked the same, and nowhere else."""

import base64
import hashlib
import re
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from board_runs import derived, report, verdicts
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from test_report import Page
from tiny_run import Tiny, advprune, refusal

from deploy.compare import Side, compare_runs, headline, render_compare
from deploy.compare_pairs import metrics
from deploy.errors import DeployError
from deploy.gate_pairs import compare as pairs_of_the_gate
from deploy.statistics import share
from deploy.verdicts import Verdicts

pytest_plugins = ["tiny_fixtures"]

PGD, SQUARE = "pgd-ce@finetuned", "square"
HOSTILE = "<script>alert(1)</script>\"'&{{ 7*7 }}"


def side(name: str, worst: int = 320, sha: str = "a", **of: Any) -> Side:
    files = {"int8": sha, "fp32": chr(ord(sha) + 2)}
    both = {precision: verdicts(worst, precision, file) for precision, file in files.items()}
    return Side(name, report(worst, **of), both, {"method": "flag"})


def pairs_of(a: Verdicts, b: Verdicts) -> dict[str, Any]:
    return {one["metric"]: one["test"] for one in metrics(a, b)}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_the_numbers_of_pairs_are_scipys(pairs: list[tuple[bool, bool]]) -> None:
    engines = []
    for position in (0, 1):
        flags = [pair[position] for pair in pairs]
        correct = {"clean": [True] * len(pairs), PGD: [True] * len(pairs), SQUARE: flags}
        engines.append(replace(verdicts(), correct=correct))
    found = pairs_of(*engines)
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    for metric in ("worst", SQUARE):
        test = found[metric]
        assert (test["worse"], test["better"], test["count"]) == (only_a, only_b, len(pairs))
        if only_a + only_b:
            wanted = binomtest(only_a, only_a + only_b)
            assert test["p_either_way"] == pytest.approx(wanted.pvalue, rel=1e-9)
            one_sided = binomtest(only_a, only_a + only_b, alternative="greater")
            assert test["p"] == pytest.approx(one_sided.pvalue, rel=1e-9)
        else:
            assert test["p_either_way"] == 1.0
        assert test["change"] == pytest.approx((only_b - only_a) / len(pairs))
        assert test["change_low"] <= test["change"] <= test["change_high"]


def test_the_pairs_are_those_of_the_gate() -> None:
    a, b = verdicts(320), verdicts(300, sha="b")
    gate = {one.metric: one.to_dict() for one in pairs_of_the_gate(b, a, "a")}
    found = pairs_of(a, b)
    assert found.keys() == gate.keys()
    for metric, test in found.items():
        assert gate[metric].items() <= test.items()
    back = pairs_of(b, a)["worst"]
    assert back["change_low"] == pytest.approx(-found["worst"]["change_high"])
    assert back["p_either_way"] == found["worst"]["p_either_way"]


@pytest.mark.parametrize("key", ["data", "images", "labels"])
def test_other_images_are_never_paired(key: str) -> None:
    other = verdicts(300, sha="b", **{key: "9" * 64})
    found = metrics(verdicts(320), other)
    assert [one["test"] for one in found] == [None] * 4
    assert found[0]["a"] == share([i < 320 for i in range(400)])
    assert found[0]["b"] == share([i < 300 for i in range(400)])


def test_fewer_images_are_never_paired() -> None:
    other = verdicts(300)
    fewer = replace(other, correct={name: flags[:200] for name, flags in other.correct.items()})
    assert not any(pairs_of(verdicts(), fewer).values())


@pytest.mark.parametrize(
    "protocol",
    [{"seed": 1}, {"threat": {"norm": "linf", "eps": 0.1, "low": 0.0, "high": 1.0}}],
)
def test_under_another_threat_or_seed_only_clean_images_are_paired(
    protocol: dict[str, Any],
) -> None:
    found = pairs_of(verdicts(), verdicts(300, sha="b", **protocol))
    assert {name for name, test in found.items() if test} == {"clean"}


def test_an_attack_with_other_settings_is_not_paired_and_neither_is_the_worst_case() -> None:
    other = verdicts(300, attacks=[{"name": PGD, "steps": 20}, {"name": SQUARE, "queries": 10}])
    found = pairs_of(verdicts(), other)
    assert {name for name, test in found.items() if test} == {"clean", PGD}
    more = verdicts(attacks=[*verdicts().protocol["attacks"], {"name": "cw"}])
    more = replace(more, correct={**more.correct, "cw": [False] * 400})
    found = metrics(verdicts(), more)
    assert [one["metric"] for one in found if one["test"]] == ["clean", PGD, SQUARE]
    assert found[-1] == {"metric": "cw", "a": None, "b": share([False] * 400), "test": None}


def test_what_differs_is_told_with_both_values_and_their_sources() -> None:
    a = side("a", options={}, model="resnet18")
    b = side("b", method="gap", model="resnet18", options={"granularity": "channel"})
    b.report["environment"]["torch"] = "2.16.0"
    found = compare_runs(a, b)
    assert found["recipe"] == [
        {"key": "method", "a": "harp", "b": "gap", "source_a": "flag", "source_b": "flag"},
        {
            "key": "options.granularity",
            "a": "–",
            "b": "channel",
            "source_a": None,
            "source_b": None,
        },
    ]
    assert found["environment"] == [{"key": "torch", "a": "2.15.0", "b": "2.16.0"}]
    assert [engine["name"] for engine in found["engines"]] == ["int8", "fp32"]
    assert found["only"] == [[], []]


def test_layers_are_matched_by_name() -> None:
    a, b = side("a"), side("b")
    b.report["sparsity"]["layers"][0] = {"name": "other", "kept": 1, "total": 4}
    layers = {one["name"]: (one["a"], one["b"]) for one in compare_runs(a, b)["layers"]}
    assert layers == {
        "layer0.weight": (0.1, None),
        "layer1.weight": (0.055, 0.055),
        "layer2.weight": (0.04, 0.04),
        "other": (None, 0.25),
    }


def test_the_first_line_says_no_more_than_the_test() -> None:
    def line(a: int, b: int, **protocol: Any) -> str:
        other = side("b", b, "b")
        if protocol:
            other = replace(
                other,
                verdicts={"int8": verdicts(b, sha="b", **protocol)}
                | {"fp32": other.verdicts["fp32"]},
            )
        return headline(compare_runs(side("a", a), other))

    assert "B is worse, -5.0 pp" in line(320, 300)
    assert "B is better, +5.0 pp" in line(300, 320)
    assert "not told apart, -0.5 pp" in line(320, 318)
    assert "on the same 400 images" in line(320, 318)
    assert "not told apart, +0.0 pp [-1.0, +1.0], p = 1.000" in line(320, 320)
    told = line(320, 300, images="9" * 64)
    assert "asked differently (images), so they are not tested" in told
    assert "pp" not in told
    assert "asked differently (seed)" in line(320, 300, seed=1)


def page(a: Side, b: Side) -> str:
    return render_compare(compare_runs(a, b), a, b, ["a/report.html", None])


def test_the_page_can_load_and_run_nothing() -> None:
    html = page(side("a"), side("b", 300, "b"))
    opened = Page(html)
    tags = {tag for tag, _ in opened.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "base"}
    names = {name for _, attributes in opened.tags for name in attributes}
    assert not names & {"src", "style", "srcset", "action", "background"}
    assert [a["href"] for _, a in opened.tags if "href" in a] == ["a/report.html"]
    (style,) = re.findall("<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(x["content"] for _, x in opened.tags if "http-equiv" in x)
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert len(html) < 100_000


def test_the_page_holds_what_the_comparison_found() -> None:
    a, b = side("a", p50_ms=0.08), side("b", 300, "b", p50_ms=0.04, seed=3)
    html = page(a, b)
    assert Page(html).lines("headline") == [headline(compare_runs(a, b))]
    assert html.count('<polyline class="line') == 2
    assert html.count('<g class="point') == 4
    assert html.count("aria-label") >= 2 + 4 + 3
    for part in ("80.0 %", "75.0 %", "-5.0 pp", "layer2.weight", "4.0 %", "0.08 ms", "0.5"):
        assert part in html, part
    assert "not paired" not in html


def test_what_cannot_be_compared_is_not_drawn_together() -> None:
    a, b = side("a"), side("b", eps=0.1)
    html = page(a, b)
    assert "Not drawn: the worst cases" in html
    assert '<g class="point' not in html
    assert html.count('<polyline class="line') == 2
    euclid = page(a, side("b", norm="l2"))
    assert "measured in different norms" in euclid
    far = side("b", 300, "b")
    far.report["environment"]["cores"] = 64
    html = page(a, far)
    assert "different places, whose times cannot be compared" in html
    assert html.count('class="front"') == 2


def test_names_cannot_become_markup() -> None:
    a = side("a", data="x", method="y")
    b = side(HOSTILE, data=HOSTILE, method=HOSTILE)
    b.report["environment"]["torch"] = HOSTILE
    plain = side("b", data="z", method="z")
    plain.report["environment"]["torch"] = "z"
    for one in (plain, b):
        one.report["sparsity"]["layers"][0]["name"] = one.name
        one.report["title"] = one.name
    tags = [[tag for tag, _ in Page(page(a, one)).tags] for one in (plain, b)]
    assert tags[0] == tags[1]


def test_reports_that_are_none_are_refused() -> None:
    for broken in ({"schema": 0}, {"engines": [{}]}, {"recipe": None}, {"sparsity": {}}):
        b = side("b")
        with pytest.raises(DeployError, match="report") as refused:
            compare_runs(side("a"), replace(b, report={**b.report, **broken}))
        assert refused.value.exit_code == 65
    alone = side("b")
    alone.report["engines"] = [alone.report["engines"][0] | {"name": "fp16"}]
    with pytest.raises(DeployError, match="no engine is in both"):
        compare_runs(side("a"), alone)


def other_seed(content: dict[str, Any]) -> None:
    content["recipe"]["seed"] = 1


def test_the_command_compares_two_runs(tiny: Tiny, tmp_path: Path) -> None:
    other = derived(tiny, tmp_path / "runs" / "other", report=other_seed)
    result = advprune("compare", tiny.run, other)
    assert result.code == 0, result
    assert result.out.splitlines()[-1] == str(tmp_path / "runs" / "compare.html")
    assert "+0.0 pp" in result.out
    assert "not paired" not in result.out
    document = advprune("compare", tiny.run, other, "--json", "--out", tmp_path / "c.html").json
    assert (tmp_path / "c.html").is_file()
    assert document["engines"][0]["same_file"]
    tests = [one["test"] for one in document["engines"][0]["metrics"]]
    assert all(test["worse"] == test["better"] == 0 for test in tests)
    assert tests[0]["count"] == tiny.report["images"]
    # The recipe.toml beside the copy says seed 0: of a value that is not the run's it says nothing.
    (seed,) = document["recipe"]
    assert (seed["a"], seed["b"]) == ("0", "1")
    assert (seed["source_a"], seed["source_b"]) == ("default", None)


def test_the_sources_of_a_run_are_those_of_its_recipe(tiny: Tiny, tmp_path: Path) -> None:
    def fewer(content: dict[str, Any]) -> None:
        content["recipe"]["verify"]["images"] = 100

    other = derived(tiny, tmp_path / "other", report=fewer)
    recipe = (other / "recipe.toml").read_text()
    (other / "recipe.toml").write_text(recipe.replace("images = 120", "images = 100"))
    out = tmp_path / "c.html"
    (row,) = advprune("compare", tiny.run, other, "--out", out, "--json").json["recipe"]
    assert row == {
        "key": "verify.images",
        "a": "120",
        "b": "100",
        "source_a": "--set",
        "source_b": "--set",
    }
    (other / "recipe.toml").write_text("[[[")
    (row,) = advprune("compare", tiny.run, other, "--out", out, "--json").json["recipe"]
    assert row["source_b"] is None


def test_what_cannot_be_compared_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    said = refusal(advprune("compare", tiny.run, tiny.runs / "latest"), 2)
    assert "the same run" in said
    refusal(advprune("compare", tiny.run, tmp_path), 66)
    refusal(advprune("compare", tmp_path / "none", tiny.run), 66)

    def more_classes(manifest: dict[str, Any]) -> None:
        manifest["metrics"]["classes"] = 43

    signs = derived(tiny, tmp_path / "signs", data=more_classes)
    assert "43" in refusal(advprune("compare", tiny.run, signs), 78)
    half = derived(tiny, tmp_path / "half")
    (half / "09_report").unlink()
    assert "it has no report" in refusal(advprune("compare", tiny.run, half), 66)
    other = derived(tiny, tmp_path / "other", report=other_seed)
    refusal(advprune("compare", tiny.run, other, "--out", tmp_path), 73)
    assert "no such folder" in refusal(
        advprune("compare", tiny.run, other, "--out", tmp_path / "x" / "c.html"), 73
    )

    def flipped(content: dict[str, Any]) -> None:
        content["count"] = 3

    damaged = derived(tiny, tmp_path / "damaged", verify=flipped)
    refusal(advprune("compare", tiny.run, damaged), 65)
    assert not list(tmp_path.glob("*.html"))


def test_the_page_is_opened_on_request(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: not shown.append(address))
    other = derived(tiny, tmp_path / "other", report=other_seed)
    assert advprune("compare", tiny.run, other, "--open").err == ""
    assert shown == [(tmp_path / "compare.html").as_uri()]
