"""The page is one file that can do nothing it should not, whoever named things, and is readable."""

import base64
import hashlib
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_tags import Page
from reports import ATTACKS, engine, example, gallery, images, item, page, share, structured

from deploy.report import render_markdown
from deploy.report_page import render_html

STYLE = (Path(__file__).parents[1] / "deploy/report_style.css.j2").read_text()


def inside(tag: str, html: str) -> str:
    (found,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return found


def test_the_page_can_load_nothing_and_run_nothing_but_its_script() -> None:
    html = page(example())
    tags = Page(html).tags
    assert not {tag for tag, _ in tags} & {"link", "iframe", "object", "base", "form", "embed"}
    names = {name for _, attributes in tags for name in attributes}
    assert not names & {"style", "srcset", "action", "background", "formaction", "ping"}
    assert not [name for name in names if name.startswith("on")]
    sources = [x["src"] for _, x in tags if "src" in x]
    assert len(sources) == 1 + 3 + 3
    assert all(source and source.startswith("data:image/png;base64,") for source in sources)
    assert all((x["href"] or "").startswith("#") for _, x in tags if "href" in x)
    assert "http:" not in html
    assert "https:" not in html
    style, script = inside("style", html), inside("script", html)
    assert "url(" not in style
    assert "@import" not in style
    for word in ("fetch", "XMLHttp", "import", "eval", "innerHTML", "Function"):
        assert word not in script
    digests = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    ]
    policy = next(x["content"] for _, x in tags if "http-equiv" in x)
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def test_links_lead_somewhere() -> None:
    for report in (example(), structured()):
        tags = Page(page(report)).tags
        ids = [x["id"] for _, x in tags if "id" in x]
        assert len(ids) == len({*ids})
        assert {x["href"] for _, x in tags if "href" in x} <= {f"#{name}" for name in ids}


def test_names_cannot_become_markup() -> None:
    hostile = "<script>alert(1)</script>\"'&[red]|`"

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            keep = {"schema", "title", *example(), *engine("x", 0, 0, 1), *example()["sparsity"]}
            keep |= {*share(0), *engine("x", 0, 0, 1)["latency"], *example()["verdict"], "status"}
            keep |= {*example()["transfer"], *example()["parity"], "seconds", "metrics", "kept"}
            keep |= {"norm", "eps", "low", "high", "id", "what", "value"}
            keep |= {*item("", 0, None, "", "")}
            keep |= {*gallery(), *gallery()["counts"]}
            return {k if k in keep else k + hostile: poison(v) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return value + hostile if isinstance(value, str) else value

    report = poison(example())
    report["verdict"]["status"] = "FAIL"
    for row in report["health"]:
        row["status"] = row["status"].removesuffix(hostile)
    for row in report["gallery"]["items"]:
        row["why"] = row["why"].removesuffix(hostile)
    assert sum(str(part).count("<script>") for part in report.values()) > 60
    tags, plain = Page(page(report)), Page(page(example()))
    assert [tag for tag, _ in tags.tags] == [tag for tag, _ in plain.tags]
    assert tags.lines("verdict-lines") == report["verdict"]["lines"]
    markdown = render_markdown(report)
    outside = re.sub(r"`[^`]*`", "", markdown.replace("\\`", ""))
    assert "<script>" not in outside.replace("\\<", "")


def test_every_drawing_is_described() -> None:
    report = example()
    tags = Page(page(report)).tags
    labels = [x["aria-label"] for tag, x in tags if tag == "svg"]
    assert all(labels)
    scores = len(report["engines"]) * (len(ATTACKS) + 2)
    signs = 2 * len(report["engines"])
    assert len(labels) == scores + 2 + signs + len(report["sparsity"]["layers"])
    assert "int8, clean: 97.7 %, 95 % interval [94.3–100.0]" in labels
    assert [label[:15] for label in labels if label and "against" in label] == [
        "Security curve.",
        "Latency against",
    ]
    alternatives = [x["alt"] for tag, x in tags if tag == "img"]
    assert len(alternatives) == 7
    assert alternatives[0] == "Image 11 of class 3 as it is; fp32 says 3, int8 says 8"


def test_headings_are_in_order() -> None:
    for report in (example(), structured()):
        levels = [int(tag[1]) for tag, _ in Page(page(report)).tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))


def colour(text: str) -> np.ndarray:
    """#rrggbb, #rgb, or the parts of rgb()."""
    if text.startswith("#"):
        digits = text[1:] if len(text) == 7 else "".join(2 * digit for digit in text[1:])
        return np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return np.array([int(part) for part in text.split(",")]) / 255


def luminance(rgb: np.ndarray) -> float:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(a: np.ndarray, b: np.ndarray) -> float:
    """WCAG 2.2."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def themes() -> dict[str, Mapping[str, np.ndarray]]:
    """The colours of the page by name, in light and in dark."""
    light, dark = re.findall(r":root \{([^}]*--ink[^}]*)\}", STYLE)
    found = {"light": light, "dark": dark}
    return {
        name: {key: colour(value) for key, value in re.findall(r"--([\w-]+): ([^;]+);", text)}
        for name, text in found.items()
    }


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_lines_stand_out_from_what_is_behind_them(theme: str) -> None:
    colours = themes()[theme]
    assert len(colours) == 14
    for behind in ("paper", "card"):
        for text in ("ink", "soft", "pass", "fail", "open"):
            assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
        for line in ("accent", "s0", "s1", "s2", "s3", "s4"):
            assert contrast(colours[line], colours[behind]) >= 3, (line, behind)
    shades = re.search(r"range\(11\) %\}\n\.h.*rgba\(var\(--accent\), .*format\(([^)]*)\)", STYLE)
    assert shades
    first, step = (float(part) for part in shades[1].replace("* step", "").split("+"))
    for level in range(11):
        share = first + step * level
        cell = share * colours["accent"] + (1 - share) * colours["paper"]
        assert contrast(colours["ink"], cell) >= 4.5, level


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast(colour("#000"), colour("#ffffff")) == pytest.approx(21)
    assert contrast(colour("#777777"), colour("#fff")) == pytest.approx(4.48, abs=0.005)
    assert contrast(colour("119, 119, 119"), colour("#fff")) == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 224, 224)])
def test_the_page_stays_small(shape: tuple[int, int, int]) -> None:
    report = example()
    items = [item("int8", i, "square", "33", "38") for i in range(12)]
    items += [item("broken", i, "square", "33", "88") for i in range(12)]
    report["gallery"]["items"] = items
    html = render_html(report, *images(24, shape))
    assert len(html.encode()) < 1_000_000
    shown = html.count("<img") // 3
    assert shown == 24 or (shape[1] == 224 and 8 <= shown < 24)
    counted = re.findall(r"of which (\d+) are shown|The first (\d+) are shown", html)
    assert sum(int(a or b) for a, b in counted) == shown
