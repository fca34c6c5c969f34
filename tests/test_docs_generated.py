"""The pages that are made from the program say what the program is, and nothing that it was."""

import re
from pathlib import Path

import pytest
from pages import meanings, settings
from pages.all import differing, made
from pages.commands import every, tree
from pages.markdown import plain, table, value_of
from pages.stages import with_tables

from advprune import attacks
from advprune.method import get, names
from pipeline.recipe import known_keys


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return made()


def test_the_pages_are_as_the_program_is(pages: dict[str, str]) -> None:
    assert not differing(pages), "make docs"


def test_a_page_that_is_edited_missing_or_left_over_is_noticed(
    pages: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pages.all.ROOT", tmp_path)
    assert set(differing(pages)) == set(pages)
    for path, text in pages.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert differing(pages) == []
    (tmp_path / "docs/settings.md").write_text("edited")
    (tmp_path / "docs/methods/gone.md").write_text("of a method that is no more")
    assert differing(pages) == ["docs/settings.md", "docs/methods/gone.md"]


def test_they_are_made_alike_each_time(pages: dict[str, str]) -> None:
    assert made() == pages


def test_every_method_has_a_page_with_all_its_options(pages: dict[str, str]) -> None:
    for name in names():
        page = pages[f"docs/methods/{name}.md"]
        for option in get(name).model_fields:
            assert f"`--{option.replace('_', '-')}`" in page
        assert f"({name}.md)" in pages["docs/methods/README.md"]


def test_every_setting_command_and_attack_is_listed(pages: dict[str, str]) -> None:
    for key in known_keys():
        assert f"| `{key}`" in pages["docs/settings.md"], key
    for words, command in every(tree()).items():
        assert f"\n## {words}\n" in pages["docs/commands.md"]
        for parameter in command.params:
            if parameter.opts[0].startswith("--") and parameter.name != "help":
                assert parameter.opts[0] in pages["docs/commands.md"]
    for name in attacks.names():
        assert f"| `{name}` |" in pages["docs/attacks.md"]


def test_no_meaning_is_left_over_and_none_is_missing() -> None:
    keys = set(known_keys())
    for key in meanings.MEANINGS:
        leaf = key.removeprefix("*.")
        assert key in keys or any(known.endswith(f".{leaf}") for known in keys), key


def test_a_setting_that_nobody_explained_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(meanings.MEANINGS, "verify.steps")
    with pytest.raises(LookupError, match=r"verify\.steps: say what it means"):
        settings.rows_of(["verify.steps"])


def test_a_stage_that_names_no_setting_is_refused() -> None:
    page = "<!-- settings: {} -->\nold\n<!-- settings: end -->"
    assert "| `prune.lr` |" in with_tables("prune", page.format("prune.lr"))
    assert "| `prune.epochs` |" in with_tables("prune", page.format("prune.*"))
    with pytest.raises(LookupError, match=r"prune\.md: no setting 'prune\.steps'"):
        with_tables("prune", page.format("prune.steps"))


def test_the_default_of_a_table_is_that_of_the_recipe() -> None:
    (row,) = re.findall(r"^\| `finetune\.lr` .*$", settings.rows_of(["finetune.lr"]), re.MULTILINE)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["`finetune.lr`", "number > 0", "`0.01`", "digits `0.1`, subset `0.05`"]


def test_text_keeps_its_signs() -> None:
    assert plain("a_l = |S| < E[x] * y, *both*") == r"a_l = |S| \< E[x] * y, \*both\*"
    assert table(["a|b"], [["`|S|`"]]) == "| a\\|b |\n| --- |\n| `\\|S\\|` |\n"
    assert [value_of(v) for v in (True, 8 / 255, 0.15, 0.5, ["a", "b"], 1e-5)] == [
        "true",
        "8/255",
        "0.15",
        "0.5",
        "a, b",
        "1e-05",
    ]
