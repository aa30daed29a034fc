"""Names to plug-ins. The name in a spec is the name of a function or, for some kinds, of a file.

`package.module:name` reaches code outside the repository, and where a file is meant
`package.module`, or `module:` for one in no package; nothing has to be registered.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from retort.errors import SpecError, did_you_mean


def outside(name: str) -> Any:
    """Returns the object that `package.module:name` points to; the module where no name is given.

    Raises `SpecError` when the module cannot be imported or has no such name.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
        return getattr(module, attribute) if attribute else module
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise SpecError(f"plug-in '{name}' cannot be loaded: {error}") from error


def source_digest(name: str) -> str:
    """Returns the sha256 of the file that a plug-in from outside stands in.

    Raises `SpecError` when there is no such module.
    """
    module = name.partition(":")[0]
    try:
        found = importlib.util.find_spec(module)
    except ImportError as error:
        raise SpecError(f"plug-in '{name}' cannot be loaded: {error}") from error
    if found is None or not found.origin:
        raise SpecError(f"plug-in '{name}' cannot be loaded: there is no module {module}")
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()


def module_names(package: ModuleType) -> list[str]:
    """Returns the names of the plug-in files in a package folder, sorted."""
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if not name.startswith("_"))


def function_names(module_name: str) -> list[str]:
    """Returns the names of the public functions of a module, sorted, without importing it."""
    names = (node.name for node in _functions(module_name))
    return sorted(name for name in names if not name.startswith("_"))


def _functions(module_name: str) -> list[ast.FunctionDef]:
    found = importlib.util.find_spec(module_name)
    assert found and found.origin
    body = ast.parse(Path(found.origin).read_text(encoding="utf-8")).body
    return [node for node in body if isinstance(node, ast.FunctionDef)]


def find_file(kind: str, name: str, package: ModuleType) -> Any:
    """Returns the plug-in module `name` of a package, or what stands outside under a dotted name.

    That is the module `package.module`, or the object behind `package.module:name`. Raises
    `SpecError` that lists what there is and the nearest name.
    """
    if ":" in name or "." in name:
        return outside(name)
    names = module_names(package)
    if name not in names:
        raise SpecError(unknown(kind, name, names, "package.module"))
    return importlib.import_module(f"{package.__name__}.{name}")


def find_function(kind: str, name: str, module_name: str) -> Any:
    """Returns the plug-in function `name` of a module, or the object behind `module:name`.

    Raises `SpecError` that lists what there is and the nearest name.
    """
    if ":" in name:
        return outside(name)
    check_function(kind, name, module_name)
    return getattr(importlib.import_module(module_name), name)


def check_function(kind: str, name: str, module_name: str) -> None:
    """Raises `SpecError` for an unknown function; the module, maybe heavy, is not imported."""
    names = function_names(module_name)
    if ":" not in name and name not in names:
        raise SpecError(unknown(kind, name, names))


def check_options(
    kind: str, name: str, module_name: str, options: Iterable[str], knobs: Iterable[str] = ()
) -> None:
    """Raises `SpecError` for an option that a plug-in function does not have; it may be a misspelt
    one of the `knobs` beside it.

    Those of a function of ours are read without importing its module, which may be heavy.
    """
    if ":" in name:
        parameters = inspect.signature(outside(name)).parameters.values()
        allowed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    else:
        (function,) = (node for node in _functions(module_name) if node.name == name)
        allowed = [argument.arg for argument in function.args.kwonlyargs]
    for option in options:
        if option not in allowed:
            near, listed = did_you_mean(option, [*allowed, *knobs]), ", ".join(allowed) or "none"
            raise SpecError(f"{kind} {name}: unknown option '{option}'{near}; it has: {listed}")


def unknown(kind: str, name: str, names: list[str], own: str = "package.module:name") -> str:
    """Returns the one sentence that refuses an unknown name; `own` is how to name one's own."""
    return (
        f"unknown {kind} '{name}'{did_you_mean(name, names)}; "
        f"there are: {', '.join(names)}, or your own as {own}"
    )
