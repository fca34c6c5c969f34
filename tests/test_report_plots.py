"""What the plots show is what the report says, in places and in words."""

import re
from typing import Any

import pytest
from reports import engine, example, page, structured

from deploy.chart import SHAPES, Canvas, series, steps
from deploy.chart_curve import security
from deploy.chart_speed import speed


def svgs(html: str) -> list[str]:
    return re.findall(r'<svg class="plot".*?</svg>', html, re.DOTALL)


def test_every_engine_has_a_line_and_a_band_that_fall() -> None:
    curve, _ = svgs(page(example()))
    lines = re.findall(r'<polyline class="line s(\d)" points="([^"]+)"', curve)
    assert [look for look, _ in lines] == ["1", "0"], "the one that ships is drawn last, on top"
    for _, points in lines:
        heights = [float(point.split(",")[1]) for point in points.split()]
        assert heights == sorted(heights), "accuracy falls, and the page counts from above"
    bands = re.findall(r'<polygon class="band s(\d)" points="([^"]+)"', curve)
    assert len(bands) == 2
    for _, points in bands:
        heights = [float(point.split(",")[1]) for point in points.split()]
        half = len(heights) // 2
        upper, lower = heights[:half], heights[half:][::-1]
        assert all(above < below for above, below in zip(upper, lower, strict=True))
    mark = re.search(r'class="here" x1="([\d.]+)"', curve)
    middle = lines[1][1].split()[5]
    assert mark and float(mark[1]) == pytest.approx(float(middle.split(",")[0]), abs=0.1)
    assert "Robust accuracy of int8 against eps: 98 % at 0" in curve


def test_numbers_of_the_curve_can_be_read() -> None:
    report = example()
    drawn = security(report["curve"], "int8", 0.15)
    assert [eps for eps, _ in drawn["table"]] == report["curve"]["eps"]
    assert drawn["table"][5][1] == [pytest.approx(0.49)] * 2
    for line in drawn["lines"]:
        values = [float(text) for text in line["values"].split()]
        assert values == pytest.approx(report["curve"]["engines"][line["name"]]["accuracy"])


def plotted(engines: list[dict[str, Any]], dense: float | None = None) -> dict[str, Any]:
    return speed(engines, "int8", None if dense is None else {"p50_ms": dense})


def four() -> list[dict[str, Any]]:
    engines = []
    for name, milliseconds, worst in (
        ("fp32", 0.9, 0.80),
        ("fp16", 1.2, 0.79),
        ("int8", 0.3, 0.78),
        ("int8-camera", 0.31, 0.55),
    ):
        made = engine(name, 0.98, worst, 1000)
        made["latency"]["p50_ms"] = milliseconds
        engines.append(made)
    return engines


def test_every_engine_is_a_point_where_its_numbers_are() -> None:
    drawn = plotted(four())
    canvas, points = drawn["canvas"], drawn["points"]
    assert [point["name"] for point in points] == ["fp32", "fp16", "int8", "int8-camera"]
    assert len({point["shape"] for point in points}) == 4
    zero = canvas.left
    for point, milliseconds in zip(points, (0.9, 1.2, 0.3, 0.31), strict=True):
        ratio = (point["x"] - zero) / (points[2]["x"] - zero)
        assert ratio == pytest.approx(milliseconds / 0.3), "lengths are ratios"
        assert canvas.left < point["x"] <= canvas.right
        assert canvas.top <= point["high"] < point["y"] < point["low"] <= canvas.bottom
    per_share = (canvas.bottom - canvas.top) / (canvas.y[1] - canvas.y[0])
    assert points[2]["y"] - points[0]["y"] == pytest.approx(0.02 * per_share)
    assert "int8: 0.3 ms, 78.0 % [74.6–80.8]" in drawn["summary"]
    assert [mark.label for mark in drawn["rows"]] == ["50 %", "60 %", "70 %", "80 %", "90 %"]


def test_the_dense_network_is_in_the_plot_where_it_was_timed() -> None:
    assert plotted(four())["dense"] is None
    drawn = plotted(four(), 5.62)
    dense = drawn["dense"]
    assert dense.label == "5.62 ms"
    fp32 = drawn["points"][0]["x"]
    left = drawn["canvas"].left
    assert (dense.at - left) / (fp32 - left) == pytest.approx(5.62 / 0.9)
    assert drawn["summary"].endswith("the dense network takes 5.62 ms")
    for report, lines in ((example(), 0), (structured(), 1)):
        _, plot = svgs(page(report))
        assert plot.count('class="here"') == lines
        assert plot.count('class="point ') == plot.count('class="whisker ') == 2


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (0.1, [0, 0.02, 0.04, 0.06, 0.08, 0.1]),
        (5.9, [0, 2, 4, 6]),
        (0.0431, [0, 0.01, 0.02, 0.03, 0.04, 0.05]),
        (1000.0, [0, 200, 400, 600, 800, 1000]),
    ],
)
def test_axes_have_round_numbers(most: float, expected: list[float]) -> None:
    assert steps(most) == pytest.approx(expected)


def test_the_engine_that_ships_has_the_first_look() -> None:
    assert series(["fp32", "int8"], "int8") == {"int8": 0, "fp32": 1}
    names = [f"engine {i}" for i in range(9)]
    looks = series(names, "engine 3")
    assert looks.keys() == {*names}
    assert [name for name, look in looks.items() if look == 0] == ["engine 3"]
    assert max(looks.values()) == len(SHAPES) - 1


def test_a_canvas_has_its_values_at_its_ends() -> None:
    canvas = Canvas(x=(0, 2), y=(0.4, 0.8))
    assert (canvas.across(0), canvas.across(2)) == (canvas.left, canvas.right)
    assert (canvas.down(0.4), canvas.down(0.8)) == (canvas.bottom, canvas.top)
