"""From names to plug-ins. The name in a spec is the name of a function or, for some kinds, a file.

`package.module:name` loads a function from outside the repository; `package.module`, or `module:`
for a module in no package, loads a file. Such code lies in a folder that the user trusts, or in an
installed package that declares it.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from retort.errors import SpecError, did_you_mean

# The variable by which child processes learn in which folder plug-ins lie.
FOLDER = "RETORT_PLUG_INS"
# What an installed package declares, one entry point for each of its modules, to offer plug-ins.
ENTRY_POINTS = "retort.plugins"
# Where our own lie, which may be named in full, too.
OURS = ("retort.data.", "retort.losses", "retort.metrics", "retort.engines")


def look_in(folder: Path) -> None:
    """Lets plug-ins be files of a folder, for this process and the children it starts."""
    os.environ[FOLDER] = str(folder.resolve())


def outside(name: str) -> Any:
    """Returns the object that `package.module:name` names; without a name, the module.

    Raises `SpecError` when the module is neither a file of the folder of plug-ins nor of a package
    that declares it, cannot be imported, or has no such name.
    """
    module_name, _, attribute = name.partition(":")
    path = _file_of(name, module_name)
    if path is not None and (folder := os.environ[FOLDER]) not in sys.path:
        sys.path.append(folder)  # behind the standard library and what is installed
    try:
        module = importlib.import_module(module_name)
        if path is not None and not _is_from(module, path):
            raise ImportError(f"it is {path}, but Python has another module of that name")
        return getattr(module, attribute) if attribute else module
    except Exception as error:  # the user's code may raise anything
        text = f"{type(error).__name__}: {error}"
        raise SpecError(f"plug-in '{name}' cannot be loaded: {text}") from error


def source_digest(name: str) -> str:
    """Returns the sha256 of the file that holds a plug-in from outside the repository; nothing is
    imported.

    Raises `SpecError` as `outside` does.
    """
    module = name.partition(":")[0]
    path = _file_of(name, module)
    if path is None:
        found = importlib.util.find_spec(module)
        path = Path(found.origin) if found and found.origin else None
    if path is None:
        raise SpecError(f"plug-in '{name}' cannot be loaded: there is no module {module}")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_beside(name: str) -> bool:
    """Whether a plug-in is a file of the folder of plug-ins: code that comes with the job."""
    return _beside(name.partition(":")[0]) is not None


def _file_of(name: str, module: str) -> Path | None:
    """Returns the file of a plug-in in the folder of plug-ins; None for one that an installed
    package declares. Raises `SpecError` for any other."""
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise SpecError(
            f"plug-in '{name}' is of Python's standard library, which is none; {PLACES}"
        )
    if module.startswith(OURS):
        return None
    if path := _beside(module):
        return path
    declared = {point.value.partition(":")[0] for point in entry_points(group=ENTRY_POINTS)}
    if any(module == known or module.startswith(f"{known}.") for known in declared):
        return None
    raise SpecError(f"plug-in '{name}' cannot be loaded: there is no module {module}; {PLACES}")


PLACES = (
    "a plug-in is a file beside the job, or of an installed package that declares the entry point "
    f"{ENTRY_POINTS}"
)


def _beside(module: str) -> Path | None:
    """Returns the file of a module in the folder of plug-ins."""
    folder, parts = os.environ.get(FOLDER), module.split(".")
    if not folder or not all(part.isidentifier() for part in parts):
        return None
    base = Path(folder, *parts)
    places = (base.with_suffix(".py"), base / "__init__.py")
    return next((place for place in places if place.is_file()), None)


def _is_from(module: ModuleType, path: Path) -> bool:
    return module.__file__ is not None and Path(module.__file__).resolve() == path.resolve()


@cache
def module_names(package: ModuleType) -> tuple[str, ...]:
    """Returns the names of the plug-in files in a package folder, sorted."""
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def function_names(module_name: str) -> list[str]:
    """Returns the names of the public functions of a module, sorted, without importing it."""
    return sorted(function.name for function in functions(module_name))


@cache
def functions(module_name: str) -> list[ast.FunctionDef]:
    """Returns the syntax trees of the public functions of one of our modules, in their order, and
    of those that it hands on by naming them in `__all__`, from a file of its own without a leading
    underscore.

    They are read from the files: importing the module may be slow.
    """
    module = importlib.util.find_spec(module_name)
    assert module and module.origin
    path = Path(module.origin)
    body, own = _body(path), f"{module_name}."
    lists = (
        n for n in body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"
    )
    passed_on = {name for node in lists for name in ast.literal_eval(node.value)}
    found = [node for node in body if isinstance(node, ast.FunctionDef)]
    for node in body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(own):
            file = (node.module or "").removeprefix(own)
            names = {alias.name for alias in node.names} & passed_on
            if names and not file.startswith("_"):
                others = _body(path.with_name(f"{file}.py"))
                found += [n for n in others if isinstance(n, ast.FunctionDef) and n.name in names]
    return [node for node in found if not node.name.startswith("_")]


def _body(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text(encoding="utf-8")).body


def find_file(kind: str, name: str, package: ModuleType) -> Any:
    """Returns the plug-in file `name` of a package, as a module.

    A dotted name is one of the user's: the module `package.module`, or the object
    `package.module:name`. Raises `SpecError` that lists the known names and the nearest one.
    """
    if ":" in name or "." in name:
        return outside(name)
    names = module_names(package)
    if name not in names:
        raise SpecError(unknown(kind, name, names, "package.module"))
    return importlib.import_module(f"{package.__name__}.{name}")


def find_function(kind: str, name: str, module_name: str) -> Any:
    """Returns the plug-in function `name` of a module, or the user's object `module:name`.

    Raises `SpecError` that lists the known names and the nearest one.
    """
    if ":" in name:
        return outside(name)
    check_function(kind, name, module_name)
    return getattr(importlib.import_module(module_name), name)


def check_function(kind: str, name: str, module_name: str) -> None:
    """Raises `SpecError` for an unknown function, without importing the module."""
    if ":" not in name and name not in function_names(module_name):
        raise SpecError(unknown(kind, name, function_names(module_name)))


def check_options(
    kind: str, name: str, module_name: str, options: Iterable[str], knobs: Iterable[str] = ()
) -> None:
    """Raises `SpecError` for an option that a plug-in function does not have.

    `knobs` are the spec's own keys beside the options: an unknown option may be a misspelt one.
    """
    if ":" in name:
        parameters = inspect.signature(outside(name)).parameters.values()
        allowed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    else:
        (function,) = (f for f in functions(module_name) if f.name == name)
        allowed = [argument.arg for argument in function.args.kwonlyargs]
    for option in options:
        if option not in allowed:
            near, listed = did_you_mean(option, [*allowed, *knobs]), ", ".join(allowed) or "none"
            raise SpecError(f"{kind} {name}: unknown option '{option}'{near}; it has: {listed}")


def unknown(kind: str, name: str, names: Sequence[str], own: str = "package.module:name") -> str:
    """Returns the message that refuses an unknown name; `own` is how users name their plug-in."""
    return (
        f"unknown {kind} '{name}'{did_you_mean(name, names)}; "
        f"known: {', '.join(names)}, or your own as {own}"
    )
