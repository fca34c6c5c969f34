"""Promise: what watches pages sees requests, errors and overflow; else it would prove nothing."""

from pathlib import Path

import pytest
from browsing import opened

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("width", [375, 1280])
def test_a_page_that_asks_for_more_is_caught(tmp_path: Path, width: int) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<p>good</p><img src='https://example.org/a.png'><div style='width:2000px'>wide</div>"
        "<script>missing()</script>"
    )
    with opened(page, width) as seen:
        assert seen.page.inner_text("p") == "good"
        assert seen.requests == ["https://example.org/a.png"]
        assert any("missing" in text for text in seen.complaints)
        assert seen.overflow() > 2000 - width - 1
