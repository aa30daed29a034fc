"""Names that MLflow takes, made of names that come from the user's data."""

import hashlib
from typing import TypeVar

Value = TypeVar("Value")
# MLflow takes letters, digits and these, as a path without empty parts, up to 250 characters.
ALLOWED = "_-. /"
MAX_CHARACTERS, KEPT_CHARACTERS = 250, 200


def safe_names(values: dict[str, Value]) -> dict[str, Value]:
    """Returns values under names of metrics or parameters that MLflow takes. Names that would
    become equal, or are too long, end in a digest of the original."""
    found: dict[str, Value] = {}
    for original, value in values.items():
        name = _safe(original)
        if len(name) > MAX_CHARACTERS or (name != original and name in {*values, *found}):
            digest = hashlib.sha256(original.encode(errors="replace")).hexdigest()
            name = f"{name[:KEPT_CHARACTERS]}-{digest[:16]}"
        found[name] = value
    return found


def is_refusal(error: Exception) -> bool:
    """Whether MLflow refused what a call holds, as against a server that failed."""
    return getattr(error, "error_code", None) in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


def _safe(original: str) -> str:
    name = "".join(c if c.isalnum() or c in ALLOWED else "_" for c in original)
    name = "/".join(part for part in name.split("/") if part not in ("", ".", ".."))
    return f"_{name}" if name.startswith("..") or not name else name
