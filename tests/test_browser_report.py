"""Promise: a report reads in a browser, wide and narrow, light and dark, without any script too."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browsing import Opened, opened
from reports import item, page, structured
from tiny_run import Tiny

pytest_plugins = ["tiny_fixtures"]
pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("clean_environment")]

LOOKS = [(375, False), (375, True), (1280, False), (1280, True)]
LONG = "a_model_of_somebody_with_a_name_that_has_no_place_to_break_" * 3


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with all that a page may have, and names as long as users make them."""
    report = structured()
    report["title"] = report["recipe"]["model"] = report["command"] = LONG
    report["caveats"] = report["notes"] = [LONG]
    report["health"][1]["what"] = LONG
    report["sparsity"]["layers"][0]["name"] = report["structure"]["groups"][0]["name"] = LONG
    shown = report["gallery"]["items"]
    shown[1] = item("int8", 12, LONG, "33", "38") | {"label": LONG, "clean": [LONG, LONG]}
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(report))
    return path


@contextmanager
def quiet(path: Path, width: int, dark: bool) -> Iterator[Opened]:
    """A page that asks for nothing, complains of nothing, and is no wider than its window."""
    with opened(path, width, dark=dark) as seen:
        yield seen
        assert seen.requests == []
        assert seen.complaints == []
        assert seen.overflow() <= 0


def count(seen: Opened, selector: str) -> int:
    return seen.page.locator(selector).count()


@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_the_page_of_a_run_says_what_its_files_say(tiny: Tiny, width: int, dark: bool) -> None:
    report, gate = tiny.report, json.loads((tiny.artefact("gate") / "gate.json").read_text())
    with quiet(tiny.run / "report.html", width, dark) as seen:
        assert seen.page.inner_text("#verdict") == gate["status"]
        assert seen.page.locator("#verdict-lines li").all_inner_texts() == gate["lines"]
        engines = len(report["engines"])
        assert count(seen, "svg .point") == count(seen, "polyline.line") == engines
        assert count(seen, "polygon.band") == engines
        assert count(seen, ".layers .bar svg") == len(report["sparsity"]["layers"])
        assert count(seen, "#checks tbody tr") == len(report["health"])
        assert count(seen, ".gallery li") == len(report["gallery"]["items"]) > 0
        look_at(seen)
        background = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(21, 23, 26)" if dark else "rgb(251, 250, 247)")
        top = seen.page.locator("#verdict").bounding_box()
        assert top and top["y"] + top["height"] < 300, "the verdict is what one sees first"


def look_at(seen: Opened) -> None:
    """Every picture is there and is described; every drawing is described and has its size."""
    pictures: list[dict[str, Any]] = seen.page.evaluate(
        "[...document.images].map(i => ({wide: i.naturalWidth, alt: i.alt, shown: i.width}))"
    )
    assert pictures
    assert all(one["wide"] > 0 and one["alt"].strip() and one["shown"] > 40 for one in pictures)
    drawings: list[dict[str, Any]] = seen.page.evaluate(
        "[...document.querySelectorAll('svg')].map(s => "
        "({said: s.getAttribute('aria-label'), wide: s.getBoundingClientRect().width}))"
    )
    assert len(drawings) > 20
    assert all(one["said"].strip() and one["wide"] > 10 for one in drawings)


@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_names_that_do_not_break_leave_the_page_as_wide_as_its_window(
    written: Path, width: int, dark: bool
) -> None:
    with quiet(written, width, dark) as seen:
        look_at(seen)
        assert count(seen, "svg .here") == 2, "the eps, and the dense network"


@pytest.mark.parametrize("width", [375, 1280])
def test_words_in_plots_can_be_read(written: Path, width: int) -> None:
    with quiet(written, width, False) as seen:
        heights = seen.page.evaluate(
            "[...document.querySelectorAll('.plot text')]"
            ".map(t => t.getBoundingClientRect().height)"
        )
        assert len(heights) > 15 and min(heights) >= 9


def test_the_curve_tells_its_numbers_under_a_pointer_and_to_keys(written: Path) -> None:
    with quiet(written, 1280, False) as seen:
        plot, said = seen.page.locator("svg[data-eps]"), seen.page.locator("#curve-said")
        assert said.inner_text().startswith("Point at the curve")
        plot.focus()
        assert said.inner_text() == "eps 0.150: int8 49.0 %, fp32 49.0 %"
        plot.press("ArrowRight")
        assert said.inner_text() == "eps 0.180: int8 39.2 %, fp32 39.2 %"
        box = plot.bounding_box()
        assert box
        seen.page.mouse.move(box["x"] + box["width"] * 52 / 440, box["y"] + 50)
        assert said.inner_text() == "eps 0.000: int8 98.0 %, fp32 98.0 %"
        for _ in range(3):
            plot.press("ArrowLeft")
        assert said.inner_text().startswith("eps 0.000"), "no farther than the curve"


def test_checks_that_are_ok_can_be_put_away(written: Path) -> None:
    with quiet(written, 1280, False) as seen:
        button, rows = seen.page.get_by_role("button"), seen.page.locator("#checks tbody tr")
        assert [row.is_visible() for row in rows.all()] == [True, True]
        button.click()
        assert [row.inner_text().split("\t")[0] for row in rows.all() if row.is_visible()] == [
            "H15"
        ]
        assert button.get_attribute("aria-pressed") == "true"
        button.click()
        assert [row.is_visible() for row in rows.all()] == [True, True]


def test_the_page_is_whole_without_scripts_and_on_paper(written: Path) -> None:
    with quiet(written, 1280, True) as seen:
        plain = seen.page.context.browser
        assert plain
        without = plain.new_context(java_script_enabled=False, offline=True).new_page()
        without.goto(written.as_uri())
        told, seen_without = (p.locator("main").inner_text() for p in (seen.page, without))
        assert without.get_by_role("button").count() == 0
        for words in ("Point at the curve, or choose it and use the arrow keys.",):
            assert words in told and words not in seen_without
        assert without.locator(".gallery img").count() == 7
        missing = {*told.splitlines()} - {*seen_without.splitlines()}
        assert all(line.startswith(("Point at", "Whether the attacks")) for line in missing)
        seen.page.emulate_media(media="print")
        assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)"
        )
        assert not seen.page.locator("nav").is_visible()
        assert seen.page.get_by_text("quantize.enabled").is_visible(), "folded on the screen alone"
