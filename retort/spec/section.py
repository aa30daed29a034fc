"""The base of every section of a spec: frozen, strict about names, each knob with its unit.

Prefect's page makes its form from the JSON schema, and does not show bounds; so each description
contains them in words.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from retort.records import JsonObject

# Units that the form shows by itself, or that say nothing.
PLAIN_UNITS = ("1", "section", "yes or no")
ADDED_LATER = "added_later"
# The largest seed that every library takes.
MAX_SEED = 2**32 - 1


def _plain_fields(schema: JsonObject) -> None:
    """Makes an optional number or text a plain field of the form.

    Otherwise the form asks for a choice between `int` and `None`. A run's parameters may hold a
    null for such a field, because it has no default in the schema.
    """
    for field in schema["properties"].values():
        kinds = [kind for kind in field.get("anyOf", []) if kind != {"type": "null"}]
        if field.get("default", "") is None and len(kinds) == 1 and "type" in kinds[0]:
            field.update(kinds[0])
            del field["anyOf"], field["default"]


class Section(BaseModel):
    """Frozen, and strict about names: an unknown key is refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, json_schema_extra=_plain_fields
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses true and false where a number belongs; pydantic would read 1 and 0."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {kind, *getattr(kind, "__args__", ())}:
            raise ValueError(
                "Input should be a number; YAML reads yes, no, on and off as true and false: put "
                "such a word in quotes if a text is meant"
            )
        return value

    @field_validator("endpoint", check_fields=False)
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        if value and "@" in value:
            raise ValueError("endpoint must not hold credentials; name a variable in api_key_env")
        return value


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


def _limits(bounds: JsonObject) -> list[str]:
    """Returns a knob's bounds in words."""
    if "ge" in bounds and "le" in bounds:
        return [f"{bounds['ge']} to {bounds['le']}"]
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    return [f"{words[name]} {bounds[name]}" for name in words if name in bounds]
