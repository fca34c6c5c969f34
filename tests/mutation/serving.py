"""Mutated modules in place of those on disk, for every import from here on."""

import ast
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType


def module_name(path: str) -> str:
    """Path of a source below the root -> name of the module."""
    return ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__")


class Served(MetaPathFinder):
    """Finds the modules of the given trees first.

    Attributes:
        missing: names of those that nobody has imported yet.
    """

    def __init__(self, trees: Mapping[str, ast.Module], root: Path) -> None:
        """`trees`: path of the source below `root` -> what to run in its place."""
        self._trees = {module_name(path): (root / path, tree) for path, tree in trees.items()}
        self.missing = set(self._trees)
        early = self._trees.keys() & sys.modules.keys()
        if early:
            raise RuntimeError(f"mutants: imported before its mutant: {', '.join(sorted(early))}")
        sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._trees:
            return None
        file, tree = self._trees[fullname]
        self.missing.discard(fullname)
        return importlib.util.spec_from_file_location(
            fullname,
            file,
            loader=_Loader(fullname, str(file), tree),
            submodule_search_locations=[str(file.parent)] if file.stem == "__init__" else None,
        )


class _Loader(SourceFileLoader):
    def __init__(self, fullname: str, path: str, tree: ast.Module) -> None:
        super().__init__(fullname, path)
        self._tree = tree

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._tree, self.path, "exec", dont_inherit=True)
