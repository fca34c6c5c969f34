"""Finds calls that run code from data, or unpack it anywhere, by what they say and not by running.

Names are followed through imports, not through assignments: so what may be called in one way alone
may not be passed on either.
"""

import ast
from collections.abc import Iterator

_TORCH_LOADS = {"torch.load", "torch.serialization.load"}
# Never, however they are called. Modules and builtins that ruff bans are its own.
_NEVER = {
    "torch.serialization.add_safe_globals": "a list of what a pickle may call only grows",
    "torch.serialization.safe_globals": "a list of what a pickle may call only grows",
    "yaml.load": "yaml.safe_load",
    "yaml.load_all": "yaml.safe_load_all",
    "yaml.full_load": "yaml.safe_load",
    "yaml.full_load_all": "yaml.safe_load_all",
    "yaml.unsafe_load": "yaml.safe_load",
    "yaml.unsafe_load_all": "yaml.safe_load_all",
    "shutil.unpack_archive": "check every member, and write it yourself",
}
# Methods, of whatever object.
_METHODS = {
    "register_custom_ops_library": "it runs native code from a file",
    "load_library": "it runs native code from a file",
    "read_pickle": "what it reads can run code",
}
_UNPACKING = {"extractall", "extract"}
# Options that may be spelled out in one way alone, and where the default is that, left out.
_ONLY_FALSE = {"allow_pickle", "trust_remote_code", "shell"}
_PICKLING = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
# May be taken out of an environment, and that is all.
_SWITCH = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def unsafe_calls(source: str) -> list[str]:
    """What is unsafe in the text of a module: `line: what, and why`, in the order of the text."""
    tree = ast.parse(source)
    imported = dict(_imports(tree))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {id(call.func) for call in calls}
    popped = {
        id(argument)
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "pop"
        for argument in call.args
    }
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += [(node.lineno, what) for what in _in_call(node, imported)]
        elif isinstance(node, ast.Name | ast.Attribute):
            name = _dotted(node, imported)
            if name in _TORCH_LOADS and id(node) not in called:
                found.append((node.lineno, f"{name} is passed on: call it, with weights_only=True"))
            if name in _NEVER:
                found.append((node.lineno, f"{name}: {_NEVER[name]}"))
            if isinstance(node, ast.Attribute) and node.attr in _METHODS:
                found.append((node.lineno, f"{node.attr}: {_METHODS[node.attr]}"))
        elif _is(node, _SWITCH) and id(node) not in popped:
            found.append((node.lineno, f"{_SWITCH} is set"))  # pyright: ignore
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found += [(node.lineno, f"{name}: {_NEVER[name]}") for name in names & {*_NEVER}]
    return [f"{line}: {what}" for line, what in sorted(found)]


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Name in the module -> what it stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (first, first)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _dotted(node: ast.AST, imported: dict[str, str]) -> str:
    """`torch.load`, by whatever name torch goes here; empty where it is no name."""
    if isinstance(node, ast.Name):
        return imported.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value, imported)
        return owner and f"{owner}.{node.attr}"
    return ""


def _in_call(call: ast.Call, imported: dict[str, str]) -> Iterator[str]:
    name = _dotted(call.func, imported)
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    for option in _ONLY_FALSE & {*options}:
        if not _is(options[option], False):
            yield f"{name}: {option} is not False"
    if name in _TORCH_LOADS:
        if not _is(options.get("weights_only"), True):
            yield f"{name} without weights_only=True, spelled out"
        if "pickle_module" in options or len(call.args) > 2 or None in options:
            yield f"{name} with a pickle_module, or who knows what"
    if name == "numpy.load" and (len(call.args) > 2 or None in options):
        yield f"{name}: allow_pickle is not False"
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if method in _UNPACKING and not _is(options.get("filter"), "data"):
        yield f"{method} without filter='data': a name may lead out"
    words = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    if name in {"importlib.import_module", "__import__"} and _PICKLING & {*words}:
        yield f"{name} of {words[0]}: what it reads can run code"


def _is(node: ast.AST | None, value: bool | str) -> bool:
    """Whether the text says just this: 1 is no True, nor is a name that holds it."""
    if not isinstance(node, ast.Constant):
        return False
    return type(node.value) is type(value) and node.value == value
