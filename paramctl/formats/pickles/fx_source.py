"""The Python source inside a torch.fx graph module, judged without running it.

Loading such a module compiles its `forward` and calls it once with stand-ins, so every call in it counts.
Reference: torch/fx/graph_module.py and torch/fx/graph.py, which write the source.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Sequence

from paramctl.formats.pickles.known_names import canonical, is_plain, judge_path

MAX_SOURCE = 300_000  # characters; a syntax tree takes some hundred times as much memory

_PLAIN = (
    ast.arguments, ast.arg, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return, ast.Expr, ast.Pass, ast.Delete,
    ast.Call, ast.keyword, ast.Starred, ast.Attribute, ast.Name, ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Set,
    ast.Slice, ast.Subscript, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop,
    ast.cmpop, ast.expr_context,
)  # fmt: skip
_WITHOUT_CALLS = (
    ast.Name, ast.Constant, ast.Attribute, ast.Subscript, ast.Tuple, ast.UnaryOp, ast.unaryop, ast.expr_context
)  # fmt: skip


class _Suspicious(Exception):
    """Something that torch.fx does not write, or that reaches what a forward() has no use for."""


def is_plain_forward(source: str) -> bool:
    """Return whether the source is only imports and one `forward`, and names nothing that is known to be dangerous."""
    if len(source) > MAX_SOURCE:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the file's author, not for the one who looks at the file
            _check_module(ast.parse(source))
    except (_Suspicious, SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _check_module(module: ast.Module) -> None:
    imports: dict[str, str] = {}
    functions = []
    for statement in module.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            _import(statement, imports)
        elif isinstance(statement, ast.FunctionDef):
            functions.append(statement)
        elif ast.unparse(statement) != "NoneType = type(None)" and not _is_wrap(statement):
            raise _Suspicious
    if [function.name for function in functions] != ["forward"]:
        raise _Suspicious
    _check_forward(functions[0], imports)


def _is_wrap(statement: ast.stmt) -> bool:
    """Return whether a statement is `torch.fx.wrap('name')`, by which torch.fx marks a function as one step."""
    match statement:
        case ast.Expr(ast.Call(function, [ast.Constant(str())], [])):
            return isinstance(function, ast.Name | ast.Attribute) and _dotted(function)[1] == "torch.fx.wrap"
    return False


def _import(statement: ast.Import | ast.ImportFrom, imports: dict[str, str]) -> None:
    for alias in statement.names:
        module = alias.name
        if isinstance(statement, ast.ImportFrom):
            if statement.level or not statement.module:
                raise _Suspicious
            module = f"{statement.module}.{alias.name}"
        if alias.name == "*" or (module != "builtins.getattr" and _is_dangerous(module)):
            raise _Suspicious
        if alias.asname or isinstance(statement, ast.ImportFrom):
            imports[alias.asname or alias.name] = module
        else:
            top = module.partition(".")[0]
            imports[top] = top


def _check_forward(function: ast.FunctionDef, imports: dict[str, str]) -> None:
    if function.decorator_list:
        raise _Suspicious
    given = [*function.args.defaults, *(node for node in function.args.kw_defaults if node is not None)]
    annotations = [node.annotation for node in ast.walk(function.args) if isinstance(node, ast.arg)]
    for node in (*given, *annotations, function.returns):
        if node is not None and not all(isinstance(part, _WITHOUT_CALLS) for part in ast.walk(node)):
            raise _Suspicious
    own = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    body = _Body(imports, own - set(imports))
    body.check([*given, *function.body])
    for node in (*annotations, function.returns):
        if node is not None:
            body.check(list(_paths(node)), called=True)


def _paths(annotation: ast.expr) -> Iterator[ast.expr]:
    """Yield the types that an annotation names, each path whole."""
    todo: list[ast.AST] = [annotation]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Name | ast.Attribute):
            yield node
        else:
            todo += ast.iter_child_nodes(node)


class _Body:
    """The names that the expressions of a function may reach."""

    def __init__(self, imports: dict[str, str], own: set[str]) -> None:
        self.imports = imports
        self.own = own

    def check(self, nodes: Sequence[ast.AST], called: bool = False) -> None:
        """Look at each node once; a whole `a.b.c` at a time."""
        todo = [(node, called) for node in nodes]
        while todo:
            node, called = todo.pop()
            if not isinstance(node, _PLAIN):
                raise _Suspicious
            if isinstance(node, ast.Attribute | ast.Name):
                inner = self.path(node, called)
                todo += [(inner, False)] if inner is not None else []
            elif isinstance(node, ast.Call):
                todo += [(child, False) for child in (*node.args, *node.keywords)]
                if isinstance(node.func, ast.Name) and self.imports.get(node.func.id, node.func.id) in _GETATTR:
                    self.constant_attribute(node)  # what it starts from is an argument, and so on the list
                else:
                    todo.append((node.func, True))
            else:
                todo += [(child, False) for child in ast.iter_child_nodes(node)]

    def path(self, node: ast.Attribute | ast.Name, called: bool) -> ast.expr | None:
        """Judge a dotted path. Returns what it starts from, where that is no name."""
        root, dotted = _dotted(node)
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            raise _Suspicious  # it would change an object
        first, _, rest = dotted.partition(".")
        if not isinstance(root, ast.Name) or first in self.own:
            if rest and _is_dangerous(f"x.{rest}"):
                raise _Suspicious
            return None if isinstance(root, ast.Name) else root
        path = self.imports.get(first, f"builtins.{first}") + (f".{rest}" if rest else "")
        if _is_dangerous(path) or (not called and not _is_value(path)):
            raise _Suspicious
        return None

    def constant_attribute(self, call: ast.Call) -> None:
        """`getattr(self, "a name that is no identifier")` is an attribute like any other."""
        match call:
            case ast.Call(_, [_, ast.Constant(str(attribute))], []) if not _is_dangerous(f"x.{attribute}"):
                return
        raise _Suspicious


_GETATTR = ("getattr", "builtins.getattr")


def _is_value(path: str) -> bool:
    """Return whether a name may be used without being called: a dtype, a constant; but not a module."""
    return judge_path(path).danger == "known" or is_plain(path)


def _is_dangerous(path: str) -> bool:
    return judge_path(canonical(path)).danger == "dangerous"


def _dotted(node: ast.expr) -> tuple[ast.expr, str]:
    """Return the expression that `a.b.c` starts with, and its text; the text is empty if it is no name."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    names.append(node.id if isinstance(node, ast.Name) else "")
    return node, ".".join(reversed(names))
