"""What every section of a spec is made of: frozen, strict about names, each knob with its unit."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Frozen, and strict about names: an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def knob(default: Any, unit: str, description: str, **bounds: Any) -> Any:
    """Returns a field with its unit, so that no knob can be declared without one."""
    return Field(
        default=default,
        description=f"{description} [{unit}]",
        json_schema_extra={"unit": unit},
        **bounds,
    )
