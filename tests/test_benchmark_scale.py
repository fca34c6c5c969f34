"""Promise: tables of scale count a shared stage once, and the page says what is computed."""

import json
from pathlib import Path
from types import ModuleType

import pytest
from scripts import SCRIPTS, script
from torch import nn


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    return script("scale")


def test_efficiency_is_what_two_did_over_twice_what_one_does(scale: ModuleType) -> None:
    one = scale.Step(8.0, 6.0, 0.0)
    ranks = [scale.Step(5.0, 4.0, 1.0), scale.Step(4.0, 4.0, 2.0)]
    # The same batch in 5 s by two ranks where one takes 8; 8 processor seconds where one takes 6.
    assert scale.efficiency(one, ranks, 1) == (0.8, 0.75)
    assert scale.efficiency(one, ranks, 2) == (1.6, 1.5)
    assert scale.summing(ranks) == pytest.approx((1 / 5 + 2 / 4) / 2)


def test_a_table_of_steps_has_the_median_of_every_round(scale: ModuleType) -> None:
    rounds = [
        scale.Round(
            scale.Step(wall, 1.0, 0.0),
            [scale.Step(wall, 1.0, 0.0)] * 2,
            [scale.Step(2 * wall, 2.0, wall)] * 2,
        )
        for wall in (1.0, 2.0, 6.0)
    ]
    half, none = "**50 %** (50-50)", "**0 %** (0-0)"
    assert scale.lines_of("net", rounds) == [
        f"| net | strong | 2 | 2 | {half} | {half} | {none} |",
        f"| net | weak | 2 | 4 | {half} | {half} | {half} |",
    ]


def test_a_stage_that_runs_share_is_made_once(scale: ModuleType, tmp_path: Path) -> None:
    for name, stage, seconds in (("a", "data", 1.0), ("b", "prune", 2.0), ("c", "prune", 3.0)):
        folder = tmp_path / "store" / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"stage": stage, "seconds": seconds}))
    for run, pruned in (("one", "b"), ("two", "c"), ("three", "c")):
        (tmp_path / run).mkdir()
        (tmp_path / run / "00_data").symlink_to(tmp_path / "store" / "a")
        (tmp_path / run / "03_prune").symlink_to(tmp_path / "store" / pruned)
    (tmp_path / "latest").symlink_to(tmp_path / "three")
    found = scale.stages_of(tmp_path)
    assert found == {"data": scale.Made(1, 1.0, 3, 3.0), "prune": scale.Made(2, 5.0, 3, 8.0)}
    text = scale.sweep_lines(found, 10.0)
    assert "| **all** | 3 | 6 | 6.0 | 11.0 |" in text
    assert "3 of 6 stages were made, in 55 % of their seconds" in text
    assert "of which 4 s are" in text


def test_a_link_is_measured_by_a_small_sum_and_a_large_one() -> None:
    planned = script("planned")

    class Two:
        def message(self, numbers: int) -> float:
            return 1e-4 + numbers * 4 / 2e9

    link = planned.link_between(Two())
    assert link.base == pytest.approx(1e-4 + planned.SMALL * 4 / 2e9, rel=1e-3)
    assert link.rate == pytest.approx(2e9, rel=1e-3)


def test_the_network_of_the_extrapolation_is_resnet_50() -> None:
    """53 batch norms with 26,560 channels in all (He et al. 2016), counted without the script."""
    import torchvision

    extrapolate = script("extrapolate")
    net = torchvision.models.resnet50()
    channels = [m.num_features for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert (len(channels), sum(channels)) == (53, 26_560)
    numbers, traffic = extrapolate.resnet50(synced=True)
    assert numbers == 25_557_032
    assert traffic.messages == 1 + 53 * 2 + 2
    assert traffic.payload == 4 * (numbers + 2 * 26_560) + 8 * (2 * 26_560 + 53) + 24


def test_the_page_has_what_is_computed() -> None:
    extrapolate = script("extrapolate")
    written = script("sections").read_section("extrapolated", extrapolate.PAGE)
    assert written == extrapolate.table().strip()


@pytest.mark.ddp
@pytest.mark.slow
def test_steps_are_measured(
    scale: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)  # where ranks, which begin anew, find what they run
    before = scale.PAGE.read_text()
    scale.main(["--quick", "--rounds", "1", "steps"])
    out = capsys.readouterr().out
    assert out.count("| strong |") == out.count("| weak |") == len(scale.NETS)
    assert scale.PAGE.read_text() == before
