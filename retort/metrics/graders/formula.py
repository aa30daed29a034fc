"""The formula of a multi grader: names, numbers, + - * / ^ and eight functions, and nothing else.

Python's parser makes the tree; only the nodes named here are walked, and nothing is run.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence

FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
OF_SEVERAL = ("min", "max")
BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,
}
UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
MOST_CHARACTERS = 2_000
ALLOWED = f"numbers, + - * / ^ and {', '.join(FUNCTIONS)}"


def parse(text: str, names: Sequence[str]) -> ast.expr:
    """Returns the tree of a formula. Raises `ValueError` for anything but names, which are those of
    graders, numbers, and the known operators and functions."""
    if len(text) > MOST_CHARACTERS or "**" in text:
        raise ValueError(f"calculate_output: {text[:80]!r} is too long, or has ** in place of ^")
    try:
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval").body
        _check(tree, names)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"calculate_output: {text[:80]!r} is no formula of {ALLOWED}") from None
    return tree


def value(tree: ast.expr, scores: Mapping[str, float]) -> float:
    """Returns the value of a formula; 0 where it has none, as the log of 0 or too deep a one."""
    try:
        result = float(_value(tree, scores))
    except (ArithmeticError, ValueError, RecursionError):
        return 0.0
    return result if math.isfinite(result) else 0.0


def _check(node: ast.expr, names: Sequence[str]) -> None:
    if isinstance(node, ast.Name):
        if node.id not in names:
            known = ", ".join(names)
            raise ValueError(f"calculate_output: {node.id} is none of the graders; known: {known}")
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        called, number = node.func.id, len(node.args)
        if called not in FUNCTIONS or number < 1 or (number > 1 and called not in OF_SEVERAL):
            raise ValueError(
                f"calculate_output: {called} of {number} values is unknown; write {ALLOWED}"
            )
        for argument in node.args:
            _check(argument, names)
    elif isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        _check(node.left, names)
        _check(node.right, names)
    elif isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        _check(node.operand, names)
    elif not isinstance(node, ast.Constant) or type(node.value) not in (int, float):
        raise ValueError(
            f"calculate_output: {ast.unparse(node)[:80]!r} is not allowed; write names of graders, "
            f"{ALLOWED}"
        )


def _value(node: ast.expr, scores: Mapping[str, float]) -> float:
    """Returns the value of a tree that `_check` let through."""
    if isinstance(node, ast.Name):
        return scores[node.id]
    if isinstance(node, ast.Call):
        assert isinstance(node.func, ast.Name)
        arguments = [_value(argument, scores) for argument in node.args]
        several = node.func.id in OF_SEVERAL
        return (
            FUNCTIONS[node.func.id](arguments) if several else FUNCTIONS[node.func.id](*arguments)
        )
    if isinstance(node, ast.BinOp):
        return BINARY[type(node.op)](_value(node.left, scores), _value(node.right, scores))
    if isinstance(node, ast.UnaryOp):
        return UNARY[type(node.op)](_value(node.operand, scores))
    assert isinstance(node, ast.Constant) and isinstance(node.value, int | float)
    return float(node.value)
