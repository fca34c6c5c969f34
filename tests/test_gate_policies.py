"""Each policy passes, fails and stays open where it says, and senseless terms are refused."""

import pytest
from scipy.stats import binomtest
from verdict_files import example

from deploy.errors import DeployError
from deploy.gate import evaluate
from deploy.gate_outlook import outlook
from deploy.outcome import Comparison
from deploy.policies import POLICIES, Terms, floor, ratio, ship


def row(n: int, worse: int, better: int, before: float = 0.8, against: str = "x") -> Comparison:
    return Comparison("worst", against, n, before, before - (worse - better) / n, worse, better)


@pytest.mark.parametrize(
    ("pair", "status"),
    [
        (row(1000, 10, 10), "PASS"),
        (row(1000, 20, 10), "PASS"),  # one point lost, surely below two
        (row(1000, 30, 20), "INCONCLUSIVE"),
        (row(100, 0, 0), "INCONCLUSIVE"),  # nothing changed, and that is no proof
        (row(133, 0, 0), "PASS"),
        (row(1000, 40, 5), "FAIL"),
        (row(1000, 0, 0, before=0.004), "INCONCLUSIVE"),  # nothing to lose
    ],
)
def test_ship_wants_proof(pair: Comparison, status: str) -> None:
    check = ship(pair, 0.02)
    assert (check.status, check.name) == (status, "worst against x (ship)")


def test_an_open_ship_says_how_many_images_would_do() -> None:
    result = evaluate(example(319, sha="b"), example(), terms=Terms(("ship",), margin=0.005))
    assert result.status == "INCONCLUSIVE"
    assert result.images_to_ship is not None
    assert result.images_to_ship > 400
    assert f"to ship takes {result.images_to_ship} images" in result.lines[-1]
    # What lost as much as the margin ships with no number of images.
    lost = evaluate(example(318, sha="b"), example(), terms=Terms(("ship",), margin=0.005))
    assert (lost.status, lost.images_to_ship) == ("INCONCLUSIVE", None)
    gained = evaluate(example(321, sha="b"), example(), terms=Terms(("ship",), margin=0.0))
    assert (gained.status, gained.images_to_ship) == ("INCONCLUSIVE", None)
    passed = evaluate(example(sha="b"), example(), terms=Terms(("ship",)))
    assert (passed.status, passed.images_to_ship) == ("PASS", None)


@pytest.mark.parametrize("right", [660, 700, 720, 725, 760])
def test_floor_is_clopper_pearsons(right: int) -> None:
    flags = [i < right for i in range(1000)]
    low = binomtest(right, 1000).proportion_ci(0.90, method="exact").low
    high = binomtest(right, 1000).proportion_ci(0.90, method="exact").high
    expected = "PASS" if low >= 0.7 else "FAIL" if high < 0.7 else "INCONCLUSIVE"
    assert floor(flags, 0.7).status == expected
    assert {660: "FAIL", 700: "INCONCLUSIVE", 760: "PASS"}.get(right, expected) == expected


@pytest.mark.parametrize(
    ("after", "status"), [(100, "PASS"), (99, "PASS"), (98, "FAIL"), (110, "PASS")]
)
def test_ratio_holds_point_values(after: int, status: str) -> None:
    worse, better = max(0, 100 - after), max(0, after - 100)
    check = ratio(row(1000, worse, better, before=0.1, against="fp32"), 0.99)
    assert check.status == status
    assert "point values" in check.message


def test_ratio_of_nothing_is_open() -> None:
    assert ratio(row(100, 0, 5, before=0.0), 0.99).status == "INCONCLUSIVE"


def test_ratio_is_one_to_the_float_engine_of_the_run() -> None:
    fp32 = example(330, sha="f", precision="fp32")
    both = evaluate(example(sha="b"), example(), reference=fp32, terms=Terms(ratio=0.98))
    assert [check.status for check in both.checks] == ["PASS", "FAIL"]
    assert dict(both.policies) == {"regress": 0.01, "ratio": 0.98}
    with pytest.raises(DeployError, match="--float FILE") as refusal:
        evaluate(example(), example(), terms=Terms(("ratio",)))
    assert refusal.value.exit_code == 2


def test_a_floor_needs_nothing_to_compare_with() -> None:
    assert evaluate(example(), terms=Terms(("floor",), floor=0.7)).status == "PASS"
    assert evaluate(example(), terms=Terms(("floor",), floor=0.9)).status == "FAIL"
    # Beside `regress`, which finds nothing to compare with, it does not decide alone.
    assert evaluate(example(), terms=Terms(floor=0.7)).status == "INCONCLUSIVE"


def test_policies_decide_together() -> None:
    result = evaluate(example(sha="b"), example(), terms=Terms(("regress", "ship"), floor=0.9))
    assert {check.name: check.status for check in result.checks} == {
        "worst against baseline": "PASS",
        "worst against baseline (ship)": "PASS",
        "worst above the floor": "FAIL",
    }
    assert result.status == "FAIL"


def test_all_metrics_decide_corrected_by_holm() -> None:
    terms = Terms(all_metrics=True)
    # Five of 390: p = 1/32, and three times that among three metrics.
    for clean, status in ((385, "PASS"), (383, "FAIL")):
        candidate = example(sha="b")
        candidate.correct["clean"] = [i < clean for i in range(400)]
        checks = evaluate(candidate, example(), terms=terms).checks
        found = {check.name: check.status for check in checks}
        assert found["clean against baseline"] == status
        assert found["worst against baseline"] == found["square against baseline"] == "PASS"
        assert evaluate(candidate, example()).status == "PASS"


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"policies": ("shp",)}, "did you mean ship?"),
        ({"policies": ("xyz",)}, "choose from regress, ship, floor, ratio"),
        ({"policies": ("floor",)}, "add --floor"),
        ({"floor": 70}, "did you mean 0.7?"),
        ({"floor": 0.0}, "(0, 1)"),
        ({"ratio": 99}, "did you mean 0.99?"),
        ({"margin": 1}, "did you mean 0.01?"),
        ({"margin": float("nan")}, "got nan"),
        ({"margin": -0.1}, "[0, 1)"),
        ({"hard": ("xyz",)}, "choose from size, latency"),
        ({"policies": ("floor",), "floor": 0.5, "all_metrics": True}, "--all-metrics compares"),
    ],
)
def test_terms_that_make_no_sense_are_refused(terms: dict[str, object], said: str) -> None:
    with pytest.raises(DeployError) as refusal:
        Terms(**terms)  # pyright: ignore[reportArgumentType]
    assert refusal.value.exit_code == 2
    assert said in str(refusal.value)


def test_a_value_adds_its_policy() -> None:
    assert Terms().values == {"regress": 0.01}
    assert Terms(floor=0.7).values == {"regress": 0.01, "floor": 0.7}
    assert Terms(("ship", "ratio")).values == {"ship": 0.02, "ratio": 0.99}
    assert Terms(("regress", "ship"), margin=0.005).values == {"regress": 0.005, "ship": 0.005}
    assert set(POLICIES) == {"regress", "ship", "floor", "ratio"}


# Before a gate ----------------------------------------------------------------------------------


def test_too_few_images_are_warned_of() -> None:
    few = outlook(360, Terms(("regress", "ship")))
    assert few is not None
    assert few.detectable_drop > 0.02
    assert few.chance_to_ship is not None
    assert few.chance_to_ship < 0.8
    assert len(few.warnings) == 2
    for warning in few.warnings:
        images = int(warning.split(" takes ")[1].split()[0])
        enough = outlook(images + 20, Terms(("regress", "ship")))
        assert enough is not None
        assert len(enough.warnings) < 2
    assert outlook(2000, Terms(("regress", "ship"))).warnings == ()  # pyright: ignore
    assert outlook(360, Terms(("floor",), floor=0.5)) is None


def test_a_margin_of_nothing_can_never_be_met() -> None:
    found = outlook(360, Terms(("regress", "ship"), margin=0.0))
    assert found is not None
    assert found.chance_to_ship == 0.0
    assert len(found.warnings) == 2
