"""The report says the same on a page, in Markdown and on a terminal, and nothing in it can act."""

import base64
import copy
import hashlib
import io
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from deploy.errors import DeployError
from deploy.report import removed, render_html, render_markdown, smaller, terminal
from deploy.words import count, duration, flat, number
from deploy.words import size as size_in_words

ATTACKS = ("pgd-ce@finetuned", "pgd-dlr@finetuned", "pgd-ce@int8-twin", "square")


def share(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.034, "high": min(1.0, value + 0.028)}


def engine(name: str, clean: float, worst: float, size: int) -> dict[str, Any]:
    return {
        "name": name,
        "file": f"model.{name}.onnx",
        "precision": name,
        "clean": share(clean),
        "worst": share(worst),
        "attacks": {attack: share(worst + 0.01 * i) for i, attack in enumerate(ATTACKS)},
        "latency": {
            "runtime": "onnxruntime",
            "threads": 1,
            "p50_ms": 0.281,
            "p90_ms": 0.304,
            "p99_ms": 0.412,
            "throughput": 35120.0,
            "throughput_batch": 128,
        },
        "bytes": size,
        "compressed_bytes": size // 9,
    }


def curve() -> dict[str, Any]:
    """Falls from 98 % to nothing at twice the eps."""
    grid = [0.03 * step for step in range(11)]
    shares = [0.98 * (1 - step / 10) for step in range(11)]
    line = {
        "accuracy": shares,
        "low": [max(share - 0.07, 0.0) for share in shares],
        "high": [min(share + 0.07, 1.0) for share in shares],
    }
    return {"norm": "linf", "eps": grid, "engines": {"fp32": line, "int8": line}}


def example() -> dict[str, Any]:
    names = ["conv1", *(f"layer{i}.{j}.conv{k}" for i in (1, 2, 3) for j in (0, 1) for k in (1, 2))]
    layers = [
        {"name": f"network.{name}.weight", "kept": 160 + 37 * i, "total": 1440 * (i + 1)}
        for i, name in enumerate(names)
    ]
    kept, total = sum(x["kept"] for x in layers), sum(x["total"] for x in layers)
    return {
        "schema": 1,
        "title": "harp · 99 % removed (100×) · digits_resnet · digits · cpu · seed 0",
        "verdict": {
            "status": "PASS",
            "lines": [
                "worst against baseline: 88.9 % → 88.3 % of 360 images, 3 worse, 1 better: "
                "drop 0.6 pp ≤ 1.0 pp",
                "the smallest drop that this test finds in four of five cases: 2.1 pp",
            ],
        },
        "command": "advprune run --method harp --sparsity 0.99 --seed 0",
        "recipe": {
            "data": {"name": "digits", "augment": "none"},
            "prune": {"method": "harp", "sparsity": 0.99, "epochs": 12},
            "threat": {"eps": 0.15},
            "attacks": ["pgd-ce", "square"],
            "quantize": {"enabled": True, "calibration": None},
        },
        "environment": {"python": "3.11.7", "torch": "2.15.0", "threads": 2, "device": "cpu"},
        "stages": [
            {"name": "standard", "status": "cached", "seconds": 0.0, "metrics": {"clean": 0.986}},
            {
                "name": "adversarial",
                "status": "ran",
                "seconds": 81.4,
                "metrics": {"clean": 0.982, "robust": 0.918},
            },
            {
                "name": "prune",
                "status": "ran",
                "seconds": 12.31,
                "metrics": {"method": "harp", "kept": 1234.0},
            },
        ],
        "sparsity": {"asked": 0.99, "got": 1 - kept / total, "kept": kept, "total": total}
        | {"layers": layers},
        "engines": [engine("fp32", 0.979, 0.89, 226_000), engine("int8", 0.977, 0.885, 61_000)],
        "transfer": {
            "sources": ["adversarial", "finetuned", "int8-twin"],
            "targets": ["fp32", "int8"],
            "accuracy": [[0.913, 0.907], [0.79, 0.801], [0.81, 0.785]],
        },
        "parity": {
            "argmax_agreement_clean": 1.0,
            "argmax_agreement_adversarial": 0.9972,
            "max_logit_gap": 0.1234,
            "mean_logit_gap": 0.0152,
            "rows_differing": 0.0167,
        },
        "threat": {"norm": "linf", "eps": 0.15, "low": 0.0, "high": 1.0},
        "curve": curve(),
        "health": [
            {"id": "H1", "what": "largest excess over the ball", "value": 0.0, "status": "OK"},
            {"id": "H15", "what": "int8: below Square", "value": 0.0123, "status": "SUSPECT"},
        ],
        "images": 360,
        "notes": ["Toy data: 8×8 digits say whether the pipeline works, not how good a method is."],
    }


class Page(HTMLParser):
    """Text by the id of its element, and every tag with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "rect"):
            self._open.append(dict(attrs).get("id") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            self._open.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        for name in self._open:
            self.text.setdefault(name, []).append(data)

    def lines(self, name: str) -> list[str]:
        return [line.strip() for line in self.text[name] if line.strip()]


def shown(report: dict[str, Any], width: int = 100) -> str:
    stream = io.StringIO()
    terminal(report, Console(file=stream, width=width, color_system=None))
    return stream.getvalue()


@pytest.mark.parametrize("status", ["PASS", "FAIL", "INCONCLUSIVE"])
def test_the_verdict_is_the_dictionarys(status: str) -> None:
    report = example()
    report["verdict"]["status"] = status
    page = Page(render_html(report))
    assert page.lines("verdict") == [status]
    assert page.lines("verdict-lines") == report["verdict"]["lines"]
    assert f"**{status}**" in render_markdown(report)
    assert f"\n{status}\n" in shown(report)


def test_the_page_can_load_and_run_nothing() -> None:
    html = render_html(example())
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "base"}
    names = {name for _, attributes in page.tags for name in attributes}
    assert not names & {"src", "href", "style", "srcset", "action", "data", "background"}
    assert not [name for name in names if name.startswith("on")]
    assert "http:" not in html
    assert "https:" not in html
    style = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert len(style) == 1
    assert "url(" not in style[0]
    assert "@import" not in style[0]
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    policy = next(x["content"] for _, x in page.tags if "http-equiv" in x)
    wanted = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert policy == wanted
    assert len(html) < 100_000


def test_names_cannot_become_markup() -> None:
    hostile = "<script>alert(1)</script>\"'&[red]|`"

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            keep = {"schema", "title", *example(), *engine("x", 0, 0, 1), *example()["sparsity"]}
            keep |= {*share(0), *engine("x", 0, 0, 1)["latency"], *example()["verdict"], "status"}
            keep |= {*example()["transfer"], *example()["parity"], "seconds", "metrics", "kept"}
            keep |= {"norm", "eps", "low", "high", "id", "what", "value"}
            return {k if k in keep else k + hostile: poison(v) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return value + hostile if isinstance(value, str) else value

    report = poison(example())
    report["verdict"]["status"] = "FAIL"
    assert sum(str(part).count("<script>") for part in report.values()) > 40
    page = Page(render_html(report))
    plain = Page(render_html(example()))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert page.lines("verdict-lines") == report["verdict"]["lines"]
    assert "[red]" in shown(report, width=400)
    markdown = render_markdown(report)
    outside = re.sub(r"`[^`]*`", "", markdown.replace("\\`", ""))
    assert "<script>" not in outside.replace("\\<", "")


def test_the_numbers_are_on_every_surface() -> None:
    report = example()
    html, markdown, screen = render_html(report), render_markdown(report), shown(report)
    for text in (html, markdown, screen):
        for part in ("88.5 %", "[85.1–91.3]", "97.7 %", "61 kB", "6.78 kB", "0.28", "35,120"):
            assert part in text
        for part in (*ATTACKS, "fp32", "int8", "96.21 % removed · 3.79 % kept · 26.4×", "Toy data"):
            assert part in text
    for part in ("layer3.1.conv2.weight", "prune.sparsity", "78.5 %", "1:21", "cached", "0.123"):
        assert part in html
    assert "advprune run --method harp --sparsity 0.99 --seed 0" in html
    assert "advprune run --method harp --sparsity 0.99 --seed 0" in markdown


def structured() -> dict[str, Any]:
    structure = {
        "groups": [
            {"name": "network.conv1.weight", "before": 64, "after": 16},
            {"name": "network.<b>.weight", "before": 128, "after": 64},
        ],
        "parameters": [11_173_962, 701_466],
        "macs": [555_422_720, 34_860_032],
        "logit_gap": 1e-6,
        "latent": {
            "dense": {
                "white": {"accuracy": 0.512, "vulnerability": 0.0413},
                "black": {"accuracy": 0.634, "vulnerability": 0.0387},
            },
            "cut": {
                "white": {"accuracy": 0.498, "vulnerability": 0.0219},
                "black": {"accuracy": 0.601, "vulnerability": 0.0198},
            },
            "left": {"unit_sparsity": 0.583, "memory": 0.0628, "macs": 0.0629},
        },
        "dense": engine("dense", 0, 0, 1)["latency"] | {"p50_ms": 5.62, "throughput": 220.0},
    }
    return example() | {"structure": structure}


def test_what_removing_channels_made_of_the_network_is_on_every_surface() -> None:
    report = structured()
    words = [
        "192 → 80 channels",
        "11,173,962 → 701,466 parameters",
        "555 M → 34.9 M MACs",
        "int8 20× as fast as dense fp32 on one image, 160× in batches of 128",
    ]
    assert smaller(report) == words
    html, markdown, screen = render_html(report), render_markdown(report), shown(report, width=400)
    for text in (html, markdown, screen):
        for part in words:
            assert part in text
    assert "<h2>Structure</h2>" in html
    assert "99&nbsp;% of channels were to go" in html
    assert "99&nbsp;% sparsity" in render_html(example())
    for part in ("51.2 %", "60.1 %", "0.0413", "0.0198", "58.3 %", "6.3 %"):
        assert part in html
    assert "network.&lt;b&gt;.weight: 64 of 128 channels kept" in html
    for text in (render_html(example()), render_markdown(example()), shown(example())):
        assert "channels" not in text.lower().replace("channels-last", "")
    assert smaller(example()) == []


def test_the_curve_and_the_checks_are_on_the_page() -> None:
    page = render_html(example())
    assert "robust accuracy of int8 against eps: 98 % at 0" in page
    assert page.count("<polyline") == 2
    points = re.findall(r'<polyline class="line" points="([^"]+)"', page)[0].split()
    heights = [float(point.split(",")[1]) for point in points]
    assert heights == sorted(heights), "accuracy falls, and the page counts from above"
    mark = re.search(r'class="here" x1="([\d.]+)"', page)
    assert mark and float(mark[1]) == pytest.approx(float(points[5].split(",")[0]), abs=0.1)
    assert re.search(r'class="status SUSPECT">SUSPECT', page)
    assert "int8: below Square" in page


def test_every_drawing_is_described() -> None:
    report = example()
    page = Page(render_html(report))
    labels = [x["aria-label"] for tag, x in page.tags if tag == "svg"]
    assert all(labels)
    scores = len(report["engines"]) * (len(ATTACKS) + 2)
    assert len(labels) == scores + 1 + len(report["sparsity"]["layers"])
    assert "int8, clean: 97.7 %, 95 % interval [94.3–100.0]" in labels


def test_what_a_run_lacks_is_left_out() -> None:
    report = example()
    report["engines"] = report["engines"][:1]
    report["transfer"] = {"sources": [], "targets": [], "accuracy": []}
    report["parity"] = None
    report["notes"] = []
    html = render_html(report)
    for heading in ("Transfer", "Parity", "Notes"):
        assert f"<h2>{heading}</h2>" not in html
        assert f"<h2>{heading}</h2>" in render_html(example())
    assert "model.fp32.onnx (fp32), the file that ships" in html
    one = example()
    del one["engines"][0]["attacks"]["square"]
    assert re.search(r"square +–", shown(one))
    assert "| `square` | – |" in render_markdown(one)


def test_a_report_that_lacks_something_is_refused() -> None:
    for broken in ({"schema": 2}, {"engines": []}):
        for render in (render_html, render_markdown, shown):
            with pytest.raises(DeployError, match="report") as refusal:
                render(example() | broken)
            assert refusal.value.exit_code == 65
    for part in example():
        lacking = example()
        del lacking[part]
        with pytest.raises(DeployError, match="schema" if part == "schema" else part):
            render_html(lacking)
    inner = copy.deepcopy(example())
    del inner["engines"][0]["latency"]["p99_ms"]
    with pytest.raises(DeployError, match="p99_ms"):
        render_html(inner)


def test_words_for_numbers() -> None:
    kept = example() | {"sparsity": {"kept": 10, "total": 1000}}
    assert removed(kept) == "99 % removed · 1 % kept · 100×"
    kept["sparsity"] = {"kept": 500, "total": 100_000}
    assert removed(kept) == "99.5 % removed · 0.5 % kept · 200×"
    kept["sparsity"] = {"kept": 7, "total": 7}
    assert removed(kept) == "0 % removed · 100 % kept · 1×"
    sizes = [size_in_words(x) for x in (0, 999, 61_000, 999_600, 44_700_000, 5_500_000_000)]
    assert sizes == ["0 B", "999 B", "61 kB", "1 MB", "44.7 MB", "5.5 GB"]
    times = [duration(x) for x in (0, 12.31, 59.96, 81.4, 3725)]
    assert times == ["0.0 s", "12.3 s", "1:00", "1:21", "1:02:05"]
    large = [0, 312, 999, 999_700, 555_422_720, 4.1e9, 7e12]
    assert [count(x) for x in large] == ["0", "312", "999", "1 M", "555 M", "4.1 G", "7e+03 G"]
    assert [number(x) for x in (3, 1234, 0.0152, 999.7)] == ["3", "1,234", "0.0152", "1,000"]
    assert flat({"a": {"b": 1, "c": {}}, "d": [1, "x"]}) == {
        "a.b": "1",
        "a.c": "{}",
        "d": '[1, "x"]',
    }
    report = example()
    report["threat"]["eps"] = 8 / 255
    assert ">8/255<" in render_html(report)
