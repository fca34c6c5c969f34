"""The board and the comparison as a reader has them: sorted, filtered, by keyboard, on a phone."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from board_runs import report, row, verdicts
from browsing import Opened, opened
from playwright.sync_api import Page

from deploy.board import parts, render_board
from deploy.compare import Side, compare_runs, render_compare
from deploy.plot import pareto

pytestmark = pytest.mark.browser

WIDTHS = [375, 1280]
# Worst case, latency, bytes and method of each; two of one setting, one of other eps.
RUNS = {
    "a": (320, 0.08, 20_000, "harp"),
    "b": (310, 0.10, 9_000, "magnitude"),
    "c": (330, 0.20, 110_000, "harp"),
    "d": (100, 0.05, 100_000, "gap"),
    "e": (305, 0.30, 25_000, "hydra"),
}


def rows() -> list[dict]:
    found = [
        row(name, worst, p50_ms=ms, compressed=size, method=method, seed=len(name))
        for name, (worst, ms, size, method) in RUNS.items()
    ]
    found.append(row("again", 315, p50_ms=0.09, compressed=21_000, method="harp", seed=7))
    found[-1] |= {"when": None}
    small = {"eps": 0.1, "protocol": {"threat": {"norm": "linf", "eps": 0.1}}}
    return [*found, row("apart", 340, method="rst", options={"granularity": "2:4"}, **small)]


def write(tmp_path: Path) -> Path:
    file = tmp_path / "board.html"
    skipped = [{"run": "x" * 80, "why": "not a finished run; " + "y" * 90}]
    file.write_text(render_board(rows(), skipped, {"a": "a/report.html"}))
    return file


@pytest.fixture(params=WIDTHS)
def board(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    with opened(write(tmp_path), request.param) as seen:
        yield seen
        assert seen.requests == []
        assert seen.complaints == []
        assert seen.overflow() <= 0


def shown(page: Page, selector: str) -> int:
    return page.locator(f"{selector}:visible").count()


def column(page: Page, name: str, part: int = 0) -> list[str]:
    """The visible cells of a column, from top to bottom."""
    table = page.locator("table.rows:not(.seeds)").nth(part)
    heads = [head.strip() for head in table.locator("thead th").all_inner_texts()]
    place = next(i for i, head in enumerate(heads) if head.rstrip(" ↑↓") == name)
    cells = table.locator(f"tbody tr:visible > :nth-child({place + 1})").all_inner_texts()
    return [cell.split("\n")[0].split(" [")[0].strip() for cell in cells]


def head(page: Page, name: str, part: int = 0) -> Callable[[], None]:
    table = page.locator("table.rows:not(.seeds)").nth(part)
    button = table.locator("thead th button", has_text=name).first
    return button.click


def points_of(page: Page) -> list[int]:
    """The visible points of each drawing, and the visible rows of its part."""
    return page.evaluate(
        """() => [...document.querySelectorAll(".part")].filter((p) => p.querySelector(".plot"))
        .flatMap((part) => {
            const seen = (one) => one.getClientRects().length > 0;
            const rows = [...part.querySelectorAll("table.rows:not(.seeds) tbody tr")].filter(seen);
            return [...part.querySelectorAll(".plot")].map((plot) =>
                [...plot.querySelectorAll(".point")].filter(seen).length - rows.length);
        })"""
    )


def test_every_visible_row_is_a_point(board: Opened) -> None:
    page = board.page
    assert shown(page, "table.rows:not(.seeds) tbody tr") == 7
    assert shown(page, ".point") == 14
    assert points_of(page) == [0, 0, 0, 0]
    assert page.inner_text("#count") == f"7 of {7 + 154} rows"
    assert not page.locator("#published").is_visible()
    assert page.locator("#skipped li").count() == 1


def test_columns_sort_up_and_down_and_keep_what_is_missing_last(board: Opened) -> None:
    page = board.page
    assert column(page, "#") == ["1", "2", "3", "4", "5", "6"]
    sizes = ["9 kB", "20 kB", "21 kB", "25 kB", "100 kB", "110 kB"]
    download = head(page, "download")
    download()
    assert column(page, "download") == sizes
    sort = page.locator("table.rows").first.locator("th[aria-sort]")
    assert sort.count() == 1
    assert sort.get_attribute("aria-sort") == "ascending"
    download()
    assert column(page, "download") == sizes[::-1]
    assert sort.get_attribute("aria-sort") == "descending"
    head(page, "worst case")()
    values = [float(cell.removesuffix(" %")) for cell in column(page, "worst case")]
    assert values == sorted(values)
    assert len(set(values)) == 6
    head(page, "method")()
    assert column(page, "method") == sorted(column(page, "method"))
    for _ in range(2):
        head(page, "prunes")()
        assert column(page, "prunes")[-1] == "–"
    assert column(page, "#", 1) == ["1"], "the other part is not touched"


def test_sorting_by_keyboard(board: Opened) -> None:
    page = board.page
    button = page.locator("thead th button", has_text="p50 ms").first
    button.focus()
    page.keyboard.press("Enter")
    up = [float(cell) for cell in column(page, "p50 ms")]
    page.keyboard.press("Space")
    assert up == sorted(up)
    assert [float(cell) for cell in column(page, "p50 ms")] == up[::-1]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "download"


def test_filters_hide_rows_points_and_parts(board: Opened) -> None:
    page = board.page
    page.select_option("[name=method]", "harp")
    assert column(page, "method") == ["harp"] * 3
    assert shown(page, ".point") == 6
    assert points_of(page)[:2] == [0, 0]
    assert shown(page, "section.part") == 1, "a part without a row is not shown"
    page.fill("[name=text]", "AGAIN 7")
    assert column(page, "run") == ["again"]
    assert shown(page, ".point") == 2
    assert page.inner_text("#count").startswith("1 of")
    page.fill("[name=text]", "no such run")
    assert shown(page, "section.part") == 0
    page.fill("[name=text]", "")
    page.select_option("[name=method]", "")
    page.select_option("[name=structure]", "2:4")
    assert shown(page, "table.rows tbody tr") == 1
    page.select_option("[name=data]", "cifar10")
    assert shown(page, "table.rows tbody tr") == 0


def test_published_rows_come_on_request_and_have_no_points(board: Opened) -> None:
    page = board.page
    page.select_option("[name=source]", "published")
    assert shown(page, "#published tbody tr") == 154
    assert shown(page, ".point") == 0
    page.select_option("[name=source]", "")
    assert shown(page, "table.rows:not(.seeds) tbody tr") == 7 + 154
    assert shown(page, ".point") == 14
    assert page.locator("#published .point").count() == 0
    page.select_option("[name=method]", "harp")
    assert shown(page, "#published tbody tr") == 24
    assert column(page, "method", 2) == ["HARP"] * 24
    page.select_option("[name=source]", "measured")
    assert not page.locator("#published").is_visible()


def fronts(page: Page) -> list[list[str]]:
    """The runs on the front of each drawing of the first part, by cost."""
    return page.evaluate(
        """() => [...document.querySelector(".part").querySelectorAll(".plot")].map((plot) =>
        [...plot.querySelectorAll(".point.on:not(.off)")]
            .sort((a, b) => a.dataset.cost - b.dataset.cost).map((point) => point.dataset.run))"""
    )


def expected(kept: Callable[[dict], bool]) -> list[list[str]]:
    part = [one for one in parts(rows())[0]["rows"] if kept(one)]
    found = []
    for cost in ("p50_ms", "compressed_bytes"):
        points = [(one[cost], one["worst"]["value"]) for one in part]
        found.append([part[i]["run"] for i in pareto(points)])
    return found


def test_the_front_is_that_of_what_is_shown(board: Opened) -> None:
    page = board.page
    everything = expected(lambda _: True)
    assert fronts(page) == everything == [["d", "a", "c"], ["b", "a", "c"]]
    lines = page.locator(".front")
    drawn = [lines.nth(i).get_attribute("points") for i in range(lines.count())]
    page.fill("[name=text]", "harp")
    assert fronts(page) == expected(lambda one: one["method"] == "harp") != everything
    page.fill("[name=text]", "")
    assert fronts(page) == everything
    assert [lines.nth(i).get_attribute("points") for i in range(lines.count())] == drawn


def test_points_tell_what_they_stand_for(board: Opened) -> None:
    page = board.page
    point = page.locator(".point[data-run=c]").first
    readout = page.locator(".readout").first
    label = point.get_attribute("aria-label")
    assert label is not None
    for part in ("harp", "worst case 82.5 %", "0.2 ms"):
        assert part in label
    point.focus()
    assert readout.inner_text() == label
    assert page.locator("tr.lit").get_attribute("data-run") == "c"
    page.keyboard.press("Tab")
    assert readout.inner_text() not in ("", label), "the next point"
    page.locator("h1").click()
    page.locator(".point[data-run=d]").first.hover()
    assert "gap" in readout.inner_text()
    assert page.locator("tr.lit").get_attribute("data-run") == "d"
    page.locator("h1").hover()
    page.evaluate("document.activeElement.blur()")
    assert readout.inner_text() == ""
    assert page.locator("tr.lit").count() == 0


def test_everything_has_a_name(board: Opened) -> None:
    nameless = board.page.evaluate(
        """() => [...document.querySelectorAll("svg, .point, [role=region], select, input")]
        .filter((one) => !one.getAttribute("aria-label") && !one.closest("label"))
        .map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert nameless == []


@pytest.mark.parametrize("width", WIDTHS)
def test_without_scripts_it_is_plain_tables(width: int, tmp_path: Path) -> None:
    with opened(write(tmp_path), width, scripts=False) as seen:
        page = seen.page
        assert shown(page, "table.rows:not(.seeds) tbody tr") == 7 + 154
        assert shown(page, ".point") == 14
        assert not page.locator("#filter").is_visible()
        assert page.locator("button").count() == 0
        assert column(page, "run")[0] == "c"
        assert seen.requests == []
        assert seen.complaints == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_comparison_fits_and_asks_for_nothing(width: int, dark: bool, tmp_path: Path) -> None:
    sides = [
        Side(
            name * 20,
            report(worst, method=name * 30, data="folder:/" + "long/" * 30),
            {p: verdicts(worst, p, sha) for p, sha in (("int8", name), ("fp32", f"{worst}"[0]))},
            {},
        )
        for name, worst in (("a", 320), ("b", 200))
    ]
    file = tmp_path / "compare.html"
    found = compare_runs(*sides)
    file.write_text(render_compare(found, sides[0], sides[1], ["a/report.html", None]))
    with opened(file, width, dark=dark) as seen:
        page = seen.page
        assert "B is worse" in page.inner_text("#headline")
        assert shown(page, ".point") == 4
        assert shown(page, "svg.curves polyline") == 2
        assert page.locator("svg:not([aria-label])").count() == 0
        assert seen.requests == []
        assert seen.complaints == []
        assert seen.overflow() <= 0
