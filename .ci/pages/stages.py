"""The tables of settings inside the pages of the stages, whose other text is written by hand."""

import re

from pages.settings import rows_of
from pipeline.recipe import known_keys

_TABLE = re.compile(r"(<!-- settings: ([^>]*?) -->\n).*?(<!-- settings: end -->)", re.DOTALL)


def with_tables(stage: str, text: str) -> str:
    """The page with its table made anew.

    The comment before a table names its settings; a name that ends in `.*` stands for a section.

    Raises:
        LookupError: a setting that does not exist.
    """

    def made(found: re.Match[str]) -> str:
        return f"{found[1]}{rows_of(_keys(stage, found[2].split()))}{found[3]}"

    return _TABLE.sub(made, text)


def _keys(stage: str, words: list[str]) -> list[str]:
    known, keys = known_keys(), []
    for word in words:
        section = word.removesuffix("*")
        matching = [
            key for key in known if key == word or (section != word and key.startswith(section))
        ]
        if not matching:
            raise LookupError(f"docs/stages/{stage}.md: no setting {word!r}")
        keys += matching
    return keys
