"""The scripts of `benchmarks/` as modules."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


def script(name: str) -> ModuleType:
    """A script, which finds its neighbours as if it had been started."""
    path = SCRIPTS / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where its dataclasses look their annotations up
    with _neighbours(path.parent):
        spec.loader.exec_module(module)
    return module


def reference(name: str) -> ModuleType:
    """A published loop as stated in `benchmarks/reference/`."""
    with _neighbours(SCRIPTS):
        return importlib.import_module(f"reference.{name}")


@contextmanager
def _neighbours(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
