"""The tool that puts faults into modules finds weak tests, and never takes tests on trust."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutation.groups import read_equivalent, read_groups
from mutation.operators import mutants, mutated
from mutation.serving import Served, module_name

TESTS = Path(__file__).parent
ROOT = TESTS.parent
GROUPS = read_groups()

CHANGES = {
    "x = a < b": ["x = a <= b"],
    "x = a is not b": ["x = a is b"],
    "x = a in b": ["x = a not in b"],
    "x = a + b": ["x = a - b"],
    "x = a // b": ["x = a * b"],
    "x = a << b": ["x = a >> b"],
    "x = a and b": ["x = a or b"],
    "x = not a": ["x = a"],
    "x = -a": ["x = a"],
    "x = ~a": ["x = a"],
    "x = 3": ["x = 4"],
    "x = 0.05": ["x = 0.1"],
    "x = True": ["x = False"],
    "x += y": ["x -= y", "pass"],
    "x[i] = y": ["pass"],
    "x.y = z": ["pass"],
    "f(x)": ["pass"],
    "raise Error('gone')": ["pass"],
    "x = min(a, b)": ["x = max(a, b)"],
    "x = any(a)": ["x = all(a)"],
    "x = math.floor(a)": ["x = math.ceil(a)"],
    "x = a[b:c]": ["x = a[:c]", "x = a[b:]"],
    "x = f(a, k=b)": ["x = f(a)"],
    "x = [a for a in b if c]": ["x = [a for a in b]"],
    "x = a if b else c": ["x = a if not b else c"],
    "if a: pass": ["if not a:"],
    "while a: break": ["while not a:", "continue"],
    "def f(a=1): return a": ["def f(a=2):", "return None"],
    # Left alone.
    "x: Literal[1] = y": [],
    "'a text'": [],
    "@cached(size=1)\ndef f(): pass": [],
    "if __name__ == '__main__': run(1)": [],
    "x = 'a text'": [],
}


@pytest.mark.parametrize("source", CHANGES)
def test_an_operator_changes_one_thing(source: str) -> None:
    found = mutants(source)
    assert sorted(mutant.after for mutant in found) == sorted(CHANGES[source])
    assert all(mutant.before != mutant.after for mutant in found)


def test_a_mutant_differs_from_its_source_in_the_statement_that_it_names() -> None:
    source = (ROOT / "advprune/masks.py").read_text()
    original = ast.unparse(ast.parse(source)).splitlines()
    found = mutants(source)
    assert len({mutant.key for mutant in found}) == len(found)
    for mutant in found:
        tree = mutated(source, mutant.number)
        compile(tree, "mutant", "exec")
        lines = ast.unparse(tree).splitlines()
        assert sum(a != b for a, b in zip(original, lines, strict=True)) == 1
        assert {mutant.after} == {line.strip() for line in lines} - {x.strip() for x in original}


def test_a_key_survives_lines_that_are_added_elsewhere() -> None:
    source = "def f(a):\n    return a + 1\n"
    assert [m.key for m in mutants(source)] == [m.key for m in mutants("# more\n\n" + source)]
    assert {m.key for m in mutants(source)}.isdisjoint(
        m.key for m in mutants(source.replace("def f", "def g"))
    )


def test_a_module_that_was_imported_before_its_mutant_is_refused() -> None:
    assert module_name("mutation/operators.py") == "mutation.operators"
    with pytest.raises(RuntimeError, match=r"imported before its mutant: mutation\.operators"):
        Served({"mutation/operators.py": ast.parse("")}, TESTS)


# A repository of one module ----------------------------------------------------------------------

GRADE = """
LEAST = 50

def grade(points):
    if points >= LEAST:
        return "passed"
    return "failed"

def unused(points):
    return points
"""
WEAK = """
from shop.grades import grade

def test_it_runs():
    assert grade(90)
"""
STRONG = """
import pytest
from shop.grades import grade, unused

@pytest.fixture(scope="module")
def edge():
    return grade(49), grade(50)

def test_the_edge(edge):
    assert edge == ("failed", "passed")

def test_nothing_is_lost():
    assert unused(3) == 3
"""
COPIED = """
import sys
from pathlib import Path
from types import ModuleType

def test_a_copy():
    file = Path(__file__).parent / "shop" / "grades.py"
    module = ModuleType("copy")
    exec(compile(file.read_text(), file, "exec"), vars(module))
    assert module.grade(50) == "passed"
"""
FAILING = """
def test_more_than_there_is():
    from shop.grades import grade
    assert grade(49) == "passed"
"""


def repository(folder: Path, **tests: str) -> Path:
    (folder / "shop").mkdir()
    (folder / "shop" / "grades.py").write_text(GRADE)
    groups = ""
    for name, text in tests.items():
        (folder / f"test_{name}.py").write_text(text)
        groups += f'[{name}]\nmodules = ["shop/grades.py"]\ntests = ["test_{name}.py"]\n'
    (folder / "groups.toml").write_text(groups)
    (folder / "equivalent.toml").write_text("")
    return folder


def tool(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    told = ["--groups", "groups.toml", "--equivalent", "equivalent.toml", "--out", "found.json"]
    return subprocess.run(
        [sys.executable, "-m", "mutation", *told, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
    )


def test_weak_tests_let_faults_live_and_strong_ones_do_not(tmp_path: Path) -> None:
    repository(tmp_path, weak=WEAK, strong=STRONG)
    done = tool(tmp_path)
    assert done.returncode == 1, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    weak, strong = found["weak"], found["strong"]
    assert (strong["mutants"], strong["killed"], strong["share"]) == (5, 5, 1.0)
    assert {one["after"] for one in weak["survivors"]} == {
        "LEAST = 51",
        "if points > LEAST:",
        "return None",
    }
    # The weak test enters neither the other function nor the other branch.
    assert [one["tests"] for one in weak["survivors"]] == [1, 1, 0, 0]
    assert "shop/grades.py:2 : constant survived 1 tests" in done.stdout
    assert (tmp_path / "shop" / "grades.py").read_text() == GRADE


@pytest.mark.parametrize(
    ("text", "message"),
    [(COPIED, "ends with 71 without any mutant"), (FAILING, "ends with 1 without any mutant")],
    ids=["of another module", "that fail anyway"],
)
def test_tests_that_cannot_judge_a_mutant_are_no_judges(
    tmp_path: Path, text: str, message: str
) -> None:
    done = tool(repository(tmp_path, some=text))
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "found.json").exists()


def test_a_sample_is_drawn_by_its_seed_and_equivalents_are_not_tried(tmp_path: Path) -> None:
    repository(tmp_path, strong=STRONG)
    key = next(m.key for m in mutants(GRADE) if m.after == "LEAST = 51")
    (tmp_path / "equivalent.toml").write_text(
        f'[["shop/grades.py"]]\nkey = "{key}"\nchange = "50 -> 51"\nwhy = "for a test"\n'
    )
    assert tool(tmp_path).returncode == 0
    found = json.loads((tmp_path / "found.json").read_text())["strong"]
    assert (found["mutants"], found["killed"], found["equivalent"]) == (5, 4, 1)
    assert tool(tmp_path, "--sample", "2", "--seed", "3").returncode == 0
    assert json.loads((tmp_path / "found.json").read_text())["strong"]["mutants"] == 2


# This repository ---------------------------------------------------------------------------------


def test_the_groups_are_of_files_that_are_there() -> None:
    for group in GROUPS.values():
        for path in (*group.modules, *group.tests):
            assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("path", read_equivalent())
def test_every_equivalent_mutant_is_one_and_has_its_reason(path: str) -> None:
    keys = {mutant.key for mutant in mutants((ROOT / path).read_text())}
    for key, why in read_equivalent()[path].items():
        assert key in keys, f"{key} is no mutant of {path} any more"
        assert len(why) > 10
