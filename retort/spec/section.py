"""What every section of a spec is made of: frozen, strict about names, each knob with its unit.

The JSON schema is what Prefect's page makes its form of, so bounds are told in words, too: the page
shows them nowhere else.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

# What the form shows by itself, or what says nothing.
PLAIN_UNITS = ("1", "section", "yes or no")
ADDED_LATER = "added_later"


def _plain_fields(schema: dict[str, Any]) -> None:
    """Makes a number or text that may be left out a plain field of the form.

    Else the form asks for one of `int` and `None`. Prefect's server takes a null where a field has
    no default.
    """
    for field in schema["properties"].values():
        kinds = [kind for kind in field.get("anyOf", []) if kind != {"type": "null"}]
        if field.get("default", "") is None and len(kinds) == 1 and "type" in kinds[0]:
            field.update(kinds[0])
            del field["anyOf"], field["default"]


class Section(BaseModel):
    """Frozen, and strict about names: an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_plain_fields)


def knob(
    default: Any, unit: str, description: str, *, added_later: bool = False, **bounds: Any
) -> Any:
    """Returns a field with its unit, so that no knob can be declared without one.

    `added_later`: artifacts were made before the knob was there, as its default makes them; while a
    spec leaves it so, it is not part of their fingerprints.
    """
    facts = [*([] if unit in PLAIN_UNITS else [unit]), *_limits(bounds)]
    return Field(
        default=default,
        description=f"{description} [{', '.join(facts)}]" if facts else description,
        json_schema_extra={"unit": unit, **({ADDED_LATER: True} if added_later else {})},
        **bounds,
    )


def _limits(bounds: dict[str, Any]) -> list[str]:
    """Returns a knob's bounds in words."""
    if "ge" in bounds and "le" in bounds:
        return [f"{bounds['ge']} to {bounds['le']}"]
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    return [f"{words[name]} {bounds[name]}" for name in words if name in bounds]
