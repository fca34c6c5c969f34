"""Promise: what a bundle brings along runs on Python 3.8 with what a device has.

The syntax is held by the parser, the imports by a list, and later names where one would reach for
them. `test_edge_verify.py` runs the script on the oldest Python that is at hand.
"""

import ast
import sys

import pytest
from edge_bundle import SCRIPTS

PACKAGES = {"numpy", "onnxruntime", "tensorrt"}
MODULES_SINCE = {"tomllib", "zoneinfo", "graphlib"}
NAMES_SINCE = {
    *("lcm", "nextafter", "ulp", "cbrt", "exp2", "sumprod", "file_digest", "randbytes"),
    *("cache", "pairwise", "batched", "removeprefix", "removesuffix", "is_relative_to"),
    *("hardlink_to", "with_stem", "readlink", "bit_count", "add_note", "chdir", "StrEnum"),
    *("stdlib_module_names", "orig_argv", "BooleanOptionalAction", "to_thread", "UTC"),
}
KEYWORDS_SINCE = {"strict", "slots", "kw_only", "root_dir", "delete_on_close", "exit_on_error"}


@pytest.fixture(params=SCRIPTS, ids=lambda path: path.name)
def tree(request: pytest.FixtureRequest) -> ast.Module:
    return ast.parse(request.param.read_text(), feature_version=(3, 8))


def test_it_imports_what_a_device_has(tree: ast.Module):
    found = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    found |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found |= {
        str(ast.literal_eval(node.args[0]))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "import_module"
    }
    assert {"sys", "ctypes"} < found
    known = (sys.stdlib_module_names - MODULES_SINCE) | PACKAGES
    assert {name.split(".")[0] for name in found} <= known


def test_it_uses_no_later_name(tree: ast.Module):
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert "add_argument" in attributes
    assert not attributes & NAMES_SINCE
    keywords = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    assert "exist_ok" in keywords or "allow_pickle" in keywords
    assert not keywords & KEYWORDS_SINCE


def test_types_are_never_evaluated(tree: ast.Module):
    """Then `list[int]` and `X | Y` are text; elsewhere `|` would be later too, on tables."""
    assert isinstance(tree.body[1], ast.ImportFrom) and tree.body[1].module == "__future__"
    annotations = [
        part
        for node in ast.walk(tree)
        for name in ("annotation", "returns")
        if (part := getattr(node, name, None)) is not None
    ]
    spoken = {inner for part in annotations for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and node not in spoken:
            assert not isinstance(node.op, ast.BitOr), f"line {node.lineno}"
        if isinstance(node, ast.Subscript) and node not in spoken:
            assert getattr(node.value, "id", "") not in ("list", "dict", "tuple", "set", "type")
