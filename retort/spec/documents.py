"""The one reader of job files, in YAML or JSON: every key once, and fewer surprises of YAML 1.1.

In YAML 1.1 `1:30` is ninety and `017` is fifteen; here the first is a text and the second is 17.
`yes`, `no`, `on` and `off` are true and false, as most people expect; `spec.section` refuses these
where a number belongs.
"""

import json
import re
from typing import Any

import yaml

from retort.errors import SpecError
from retort.records import JsonObject

# Aliases can make a few lines stand for billions of values.
MAX_VALUES = 100_000
INTEGER = re.compile(r"[-+]?(?:[0-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)")
FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
)
MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a key that is written twice in a mapping."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == MERGE or not isinstance(key_node, yaml.ScalarNode):
                continue
            key, line = self.construct_object(key_node), key_node.start_mark.line + 1
            if key in lines:
                raise ValueError(f"{_twice(key)} (in lines {lines[key]} and {line})")
            lines[key] = line
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node).replace("_", "")
        return int(text, 0) if re.match("[-+]?0[bx]", text) else int(text)


def _without_numbers() -> dict[str, list[tuple[str, Any]]]:
    """Returns YAML's rules for plain words by their first character, without those for numbers."""
    numbers = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    return {
        first: [(tag, pattern) for tag, pattern in rules if tag not in numbers]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.yaml_implicit_resolvers = _without_numbers()
for _tag, _pattern, _first in (("float", FLOAT, "-+0123456789."), ("int", INTEGER, "-+0123456789")):
    _whole = re.compile(f"(?:{_pattern.pattern})$")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole, list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse(text: str, where: str, is_json: bool = False) -> Any:
    """Returns the value of a YAML or JSON text; `where` names it in errors.

    A text in braces that is JSON is read as JSON too, which is not quite a part of YAML. Raises
    `SpecError` with line and column, also for a key that is written twice.
    """
    if is_json or text.lstrip().startswith("{"):
        try:
            return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            if is_json:
                place = f"line {error.lineno}, column {error.colno}"
                raise SpecError(f"{where} is not JSON: {place}: {error.msg}") from None
        except (ValueError, RecursionError) as error:
            raise SpecError(f"{where} cannot be read: {_short(error)}") from None
    try:
        value = yaml.load(text, _Loader)
        _count(value, {})
        value = _apart(value)
    except yaml.YAMLError as error:
        raise SpecError(f"{where} is not YAML: {_place_of(error)}") from None
    except (ValueError, OverflowError, RecursionError) as error:
        raise SpecError(f"{where} cannot be read: {_short(error)}") from None
    return value


def _twice(key: Any) -> str:
    return f"the key '{key}' is written twice; keep one"


def _object(pairs: list[tuple[str, Any]]) -> JsonObject:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(_twice(next(key for key in keys if keys.count(key) > 1)))
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _count(value: Any, counts: dict[int, int]) -> int:
    """Returns how many values a value stands for. Raises ValueError for too many, or endless ones.

    `counts` holds those of the lists and mappings counted so far; 0 while one is being counted.
    """
    if not isinstance(value, list | dict):
        return 1
    if id(value) in counts:
        if not counts[id(value)]:
            raise ValueError("an alias stands for a part that holds it")
        return counts[id(value)]
    counts[id(value)] = 0
    parts = list(value.values()) if isinstance(value, dict) else value
    total = 1 + sum(_count(part, counts) for part in parts)
    if total > MAX_VALUES:
        raise ValueError(f"it holds more than {MAX_VALUES:,} values")
    counts[id(value)] = total
    return total


def _apart(value: Any) -> Any:
    """Returns a value in which an alias is a copy: a change of one place changes no other."""
    if isinstance(value, dict):
        return {key: _apart(part) for key, part in value.items()}
    return [_apart(part) for part in value] if isinstance(value, list) else value


def _short(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]


def _place_of(error: yaml.YAMLError) -> str:
    """Returns the fault and its place; not the line itself, which may hold a secret."""
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", None) or type(error).__name__)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem
