"""A page in Debian's Chromium as a reader has it: from a file, without a network, watched."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (
    "--no-sandbox",  # its sandbox refuses to start for root
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
HEIGHT = 900


@dataclass
class Opened:
    """A page, and what it did that a report must not do.

    Attributes:
        requests: of anything but the file itself.
        complaints: errors and warnings on the console, refusals of its policy included.
    """

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def overflow(self) -> int:
        """CSS pixels by which the document is wider than the window."""
        return self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )


@contextmanager
def opened(file: Path, width: int, *, dark: bool = False, scripts: bool = True) -> Iterator[Opened]:
    """Open a file in a fresh, offline browser of that width in CSS pixels.

    Raises:
        FileNotFoundError: there is no Chromium on this machine.
    """
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        raise FileNotFoundError(f"no browser ({', '.join(_NAMES)}); apt-get install chromium")
    address = file.resolve().as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=_ARGUMENTS)
        context = browser.new_context(
            viewport={"width": width, "height": HEIGHT},
            offline=True,
            java_script_enabled=scripts,
            color_scheme="dark" if dark else "light",
        )
        seen = Opened(context.new_page())

        def asked(url: str) -> None:
            if url.partition("#")[0] != address and not url.startswith("data:"):
                seen.requests.append(url)

        seen.page.on("request", lambda request: asked(request.url))
        seen.page.on(
            "console",
            lambda message: (
                seen.complaints.append(message.text)
                if message.type in ("error", "warning")
                else None
            ),
        )
        seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        seen.page.goto(address)
        yield seen
        browser.close()
