"""The faults: every place in a source where one of the operators applies, and what it makes of it.

Left alone are annotations, decorators, texts, and what only runs as a script.
"""

import ast
import copy
import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Node = ast.AST
Change = tuple[str, Node]  # operator, and what takes the place of the node
_Put = Callable[[Node], None]

_SKIPPED = {"annotation", "returns", "decorator_list"}
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
_NAMES = {
    "min": "max",
    "any": "all",
    "floor": "ceil",
    "amin": "amax",
    "argmin": "argmax",
    "minimum": "maximum",
    "clamp_min": "clamp_max",
    "zeros_like": "ones_like",
    "zeros": "ones",
}
_NAMES |= {there: here for here, there in _NAMES.items()}


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        number: of the place and operator, counted through the source.
        function: where it lies, "" outside all of them.
        line, last: of the statement, or of the head of a compound one.
        before, after: that statement.
    """

    number: int
    operator: str
    function: str
    line: int
    last: int
    before: str
    after: str

    @property
    def key(self) -> str:
        """What stays the same when the lines around it change."""
        text = "\0".join((self.function, self.before, self.after))
        return hashlib.sha256(text.encode()).hexdigest()[:10]


def mutants(source: str) -> list[Mutant]:
    """Every fault that the operators make of a source."""
    found: list[Mutant] = []
    for number, place in enumerate(_places(ast.parse(source))):
        statement = place.statement
        before = _head(statement)
        place.put(place.node)
        after = _head(place.standing())
        place.put(place.original)
        span = statement.lineno, _last_line(statement)
        found.append(Mutant(number, place.operator, place.function, *span, before, after))
    return found


def mutated(source: str, number: int) -> ast.Module:
    """The source with that one fault."""
    tree = ast.parse(source)
    place = next(itertools.islice(_places(tree), number, None))
    place.put(ast.copy_location(place.node, place.statement))
    return ast.fix_missing_locations(tree)


@dataclass(frozen=True)
class _Place:
    operator: str
    original: Node
    node: Node  # what takes its place
    put: _Put
    statement: ast.stmt
    standing: Callable[[], Node]  # the statement that stands there now
    function: str


def _places(tree: ast.Module) -> Iterator[_Place]:
    def visit(parent: Node, function: str, statement: ast.stmt | None, standing: Any) -> Any:
        for node, put, get in _children(parent):
            here, state, stand = function, statement, standing
            if isinstance(node, ast.stmt):
                state, stand = node, get
            if _only_as_script(node):
                continue
            if state is not None:
                for operator, changed in _changes(node):
                    yield _Place(operator, node, changed, put, state, stand, here)
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                here = f"{function}.{node.name}".lstrip(".")
            yield from visit(node, here, state, stand)

    yield from visit(tree, "", None, None)


def _children(parent: Node) -> Iterator[tuple[Node, _Put, Callable[[], Node]]]:
    for field, value in list(ast.iter_fields(parent)):
        if field in _SKIPPED:
            continue
        if isinstance(value, ast.AST):
            yield (
                value,
                lambda new, f=field: setattr(parent, f, new),
                lambda f=field: getattr(parent, f),
            )
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, ast.AST):
                    yield (
                        item,
                        lambda new, v=value, i=i: v.__setitem__(i, new),
                        lambda v=value, i=i: v[i],
                    )


def _only_as_script(node: Node) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def _changes(node: Node) -> Iterator[Change]:
    for kind, operator in _OPERATORS:
        if isinstance(node, kind):
            yield from ((operator.__name__.strip("_"), changed) for changed in operator(node))


def _with(node: Any, **fields: Any) -> Any:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _comparison(node: ast.Compare) -> Iterator[Node]:
    for i, operator in enumerate(node.ops):
        swapped = _COMPARE[type(operator)]()
        yield _with(node, ops=[*node.ops[:i], swapped, *node.ops[i + 1 :]])


def _arithmetic(node: ast.BinOp | ast.AugAssign) -> Iterator[Node]:
    if type(node.op) in _ARITHMETIC:
        yield _with(node, op=_ARITHMETIC[type(node.op)]())


def _junction(node: ast.BoolOp) -> Iterator[Node]:
    yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())


def _sign(node: ast.UnaryOp) -> Iterator[Node]:
    yield node.operand


def _condition(node: ast.If | ast.While | ast.IfExp) -> Iterator[Node]:
    # Comparisons and negations have operators of their own.
    if not isinstance(node.test, ast.Compare | ast.UnaryOp):
        yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))


def _filter(node: ast.comprehension) -> Iterator[Node]:
    for i in range(len(node.ifs)):
        yield _with(node, ifs=node.ifs[:i] + node.ifs[i + 1 :])


def _constant(node: ast.Constant) -> Iterator[Node]:
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
    elif isinstance(node.value, float):
        yield ast.Constant(2 * node.value if node.value else 1.0)


def _result(node: ast.Return) -> Iterator[Node]:
    if node.value is not None and not _is_none(node.value):
        yield _with(node, value=ast.Constant(None))


def _removal(node: ast.Expr | ast.Raise | ast.AugAssign | ast.Assign) -> Iterator[Node]:
    if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call):
        return  # a text, or a yield
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name | ast.Tuple):
        return  # whoever reads the name would fail
    yield ast.Pass()


def _jump(node: ast.Break | ast.Continue) -> Iterator[Node]:
    yield ast.Continue() if isinstance(node, ast.Break) else ast.Break()


def _name(node: ast.Call) -> Iterator[Node]:
    called = node.func
    if isinstance(called, ast.Name) and called.id in _NAMES:
        yield _with(node, func=ast.Name(_NAMES[called.id], ast.Load()))
    if isinstance(called, ast.Attribute) and called.attr in _NAMES:
        yield _with(node, func=_with(called, attr=_NAMES[called.attr]))


def _keyword(node: ast.Call) -> Iterator[Node]:
    for i in range(len(node.keywords)):
        yield _with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])


def _slice(node: ast.Slice) -> Iterator[Node]:
    for bound in ("lower", "upper", "step"):
        if getattr(node, bound) is not None:
            yield _with(node, **{bound: None})


_OPERATORS: list[tuple[Any, Callable[[Any], Iterator[Node]]]] = [
    (ast.Compare, _comparison),
    (ast.BinOp | ast.AugAssign, _arithmetic),
    (ast.BoolOp, _junction),
    (ast.UnaryOp, _sign),
    (ast.If | ast.While | ast.IfExp, _condition),
    (ast.comprehension, _filter),
    (ast.Constant, _constant),
    (ast.Return, _result),
    (ast.Expr | ast.Raise | ast.AugAssign | ast.Assign, _removal),
    (ast.Break | ast.Continue, _jump),
    (ast.Call, _name),
    (ast.Call, _keyword),
    (ast.Slice, _slice),
]


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _head(statement: Node) -> str:
    """A statement in one line; of a compound one only what precedes its blocks."""
    empty = {name: [] for name in _BLOCKS if hasattr(statement, name)}
    return " ".join(ast.unparse(ast.fix_missing_locations(_with(statement, **empty))).split())


def _last_line(statement: ast.stmt) -> int:
    body = getattr(statement, "body", None) or getattr(statement, "cases", None)
    if not body:
        return statement.end_lineno or statement.lineno
    first = body[0].pattern if isinstance(body[0], ast.match_case) else body[0]
    return max(statement.lineno, first.lineno - 1)
