"""Which tests reach which lines, and how long each takes, with the modules unchanged."""

import ast
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from coverage import Coverage

from mutation.operators import Mutant
from mutation.serving import Served
from mutation.trial import QUIET, Ended, calm


@dataclass(frozen=True)
class Reach:
    """What a survey found.

    Attributes:
        seconds: node id of a test that passed -> what it took.
        lines: path of a source -> line -> those that reach it, by node id, or by file where it was
            reached for a fixture that tests of the file share.
    """

    seconds: Mapping[str, float]
    lines: Mapping[str, Mapping[int, Sequence[str]]]

    def tests_of(
        self, path: str, mutant: Mutant, spans: Mapping[str, tuple[int, int]]
    ) -> list[str]:
        """The tests that reach a mutant, the quickest first.

        What runs on import is reached by all tests of the function whose default it is, or of the
        module.
        """
        found = self._between(path, mutant.line, mutant.last)
        if not found and mutant.function in spans:
            first, last = spans[mutant.function]
            if mutant.line <= first:
                found = self._between(path, first, last)
        if not found and mutant.function not in spans:
            found = self._between(path, 1, max(self.lines[path], default=0))
        return sorted(found, key=lambda test: (self.seconds[test], test))

    def _between(self, path: str, first: int, last: int) -> set[str]:
        names = {name for line in range(first, last + 1) for name in self.lines[path].get(line, ())}
        return {test for test in self.seconds if test in names or test.partition("::")[0] in names}


def survey(tests: Sequence[str], modules: Sequence[str], root: Path, folder: Path) -> int:
    """Write a `Reach` into folder / "reach.json"; for a process made by `trial.fork`.

    The modules are served like mutants, so that what serves them is seen to do no harm.
    """
    trees = {path: ast.parse((root / path).read_text(encoding="utf-8")) for path in modules}
    served = Served(trees, root)
    calm()
    coverage = Coverage(
        data_file=None, branch=False, include=[str(root / path) for path in modules]
    )
    watch = _Watch(coverage)
    coverage.start()
    code = pytest.main([*QUIET, f"--basetemp={folder / 'tests'}", *tests], plugins=[watch])
    coverage.stop()
    data = coverage.get_data()
    lines = {
        path: {
            line: [context for context in contexts if context]
            for line, contexts in data.contexts_by_lineno(str(root / path)).items()
        }
        for path in modules
    }
    content = json.dumps({"seconds": watch.seconds, "lines": lines})
    (folder / "reach.json").write_text(content, encoding="utf-8")
    return int(code) or int(Ended.NOT_SERVED if served.missing else Ended.PASSED)


def read(folder: Path) -> Reach:
    """What `survey` wrote."""
    content = json.loads((folder / "reach.json").read_text(encoding="utf-8"))
    lines = {
        path: {int(line): names for line, names in of_path.items()}
        for path, of_path in content["lines"].items()
    }
    return Reach(content["seconds"], lines)


def spans_of(source: str) -> dict[str, tuple[int, int]]:
    """Function by its qualified name -> its first line and its last."""

    def visit(node: ast.AST, outer: str) -> Iterator[tuple[str, tuple[int, int]]]:
        for child in ast.iter_child_nodes(node):
            name = outer
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name = f"{outer}.{child.name}".lstrip(".")
            if isinstance(child, ast.FunctionDef):
                yield name, (child.lineno, child.end_lineno or child.lineno)
            yield from visit(child, name)

    return dict(visit(ast.parse(source), ""))


class _Watch:
    """Tells coverage which test runs, and takes the time."""

    def __init__(self, coverage: Coverage) -> None:
        self.seconds: dict[str, float] = {}
        self._coverage = coverage
        self._test = ""
        self._shared: dict[str, float] = {}  # fixture -> what it took

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._test = item.nodeid
        self._coverage.switch_context(item.nodeid)
        start, shared = _worked(), sum(self._shared.values())
        result = yield
        self._coverage.switch_context("")
        alone = _worked() - start - (sum(self._shared.values()) - shared)
        if item.nodeid in self.seconds:
            # A test by itself has to wait for whatever it shares.
            needed = getattr(item, "fixturenames", ())
            self.seconds[item.nodeid] = alone + sum(self._shared.get(name, 0.0) for name in needed)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Iterator[None]:
        if fixturedef.scope == "function":
            return (yield)
        self._coverage.switch_context(self._test.partition("::")[0])
        start = _worked()
        result = yield
        self._shared[fixturedef.argname] = _worked() - start
        self._coverage.switch_context(self._test)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.seconds[report.nodeid] = 0.0  # until it has ended


def _worked() -> float:
    """Processor time of this process and of those it waited for: the same on a busy machine."""
    return sum(os.times()[:4])
