"""The report says the same on a page, in Markdown and on a terminal."""

import copy
import io
import re
from typing import Any

import pytest
from page_tags import Page
from reports import ATTACKS, example, page, structured
from rich.console import Console

from deploy.errors import DeployError
from deploy.report import removed, render_markdown, smaller, terminal
from deploy.words import count, duration, flat, number
from deploy.words import size as size_in_words


def shown(report: dict[str, Any], width: int = 100) -> str:
    stream = io.StringIO()
    terminal(report, Console(file=stream, width=width, color_system=None))
    return stream.getvalue()


@pytest.mark.parametrize("status", ["PASS", "FAIL", "INCONCLUSIVE"])
def test_the_verdict_is_the_dictionarys(status: str) -> None:
    report = example()
    report["verdict"]["status"] = status
    tags = Page(page(report))
    assert tags.lines("verdict") == [status]
    assert tags.lines("verdict-lines") == report["verdict"]["lines"]
    assert f"**{status}**" in render_markdown(report)
    assert f"\n{status}\n" in shown(report)


def test_the_numbers_are_on_every_surface() -> None:
    report = example()
    html, markdown, screen = page(report), render_markdown(report), shown(report)
    for text in (html, markdown, screen):
        for part in ("88.5 %", "[85.1–91.3]", "97.7 %", "61 kB", "6.78 kB", "0.28", "35,120"):
            assert part in text
        for part in (*ATTACKS, "fp32", "int8", "96.21 % removed · 3.79 % kept · 26.4×", "Toy data"):
            assert part in text
    for part in ("layer3.1.conv2.weight", "prune.sparsity", "78.5 %", "1:21", "cached", "0.123"):
        assert part in html
    assert "advprune run --method harp --sparsity 0.99 --seed 0" in html
    assert "advprune run --method harp --sparsity 0.99 --seed 0" in markdown


def test_what_removing_channels_made_of_the_network_is_on_every_surface() -> None:
    report = structured()
    words = [
        "192 → 80 channels",
        "11,173,962 → 701,466 parameters",
        "555 M → 34.9 M MACs",
        "int8 20× as fast as dense fp32 on one image, 160× in batches of 128",
    ]
    assert smaller(report) == words
    html, markdown, screen = page(report), render_markdown(report), shown(report, width=400)
    for text in (html, markdown, screen):
        for part in words:
            assert part in text
    assert '<h2 id="structure">' in html
    assert "99&nbsp;% of channels were to go" in html
    assert "99&nbsp;% sparsity" in page(example())
    for part in ("51.2 %", "60.1 %", "0.0413", "0.0198", "58.3 %", "6.3 %"):
        assert part in html
    assert "network.&lt;b&gt;.weight: 64 of 128 channels kept" in html
    for text in (page(example()), render_markdown(example()), shown(example())):
        assert "channels" not in text.lower().replace("channels-last", "")
    assert smaller(example()) == []


def test_what_a_run_lacks_is_left_out() -> None:
    report = example()
    report["engines"] = report["engines"][:1]
    report["transfer"] = {"sources": [], "targets": [], "accuracy": []}
    report["parity"] = None
    report["notes"] = []
    html = page(report)
    for heading in ("transfer", "parity", "notes"):
        assert f'<h2 id="{heading}">' not in html
        assert f'<h2 id="{heading}">' in page(example())
    assert "model.fp32.onnx (fp32), the file that ships" in html
    one = example()
    del one["engines"][0]["attacks"]["square"]
    assert re.search(r"square +–", shown(one))
    assert "| `square` | – |" in render_markdown(one)


def test_a_report_that_lacks_something_is_refused() -> None:
    for broken in ({"schema": 1}, {"engines": []}):
        for render in (page, render_markdown, shown):
            with pytest.raises(DeployError, match="report") as refusal:
                render(example() | broken)
            assert refusal.value.exit_code == 65
    for part in example():
        lacking = example()
        del lacking[part]
        with pytest.raises(DeployError, match="schema" if part == "schema" else part):
            page(lacking)
    inner = copy.deepcopy(example())
    del inner["engines"][0]["latency"]["p99_ms"]
    with pytest.raises(DeployError, match="p99_ms"):
        page(inner)


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
    assert ">8/255<" in page(report)
