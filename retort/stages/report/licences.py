"""What is known of a model's licence, and whether it lets others learn from its answers.

It is read from the model's own folder where that says it, else known by the family's name. It is a
hint, never advice: licences change, and their owners decide. Nothing is downloaded.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import orjson
import yaml
from pydantic import TypeAdapter

from retort.metrics.comparison import pages
from retort.metrics.comparison.shapes import Licence

CHECK = "As far as known; check it."
MOST_CHARACTERS = 20_000
FIRST_LINES = 40


@dataclass(frozen=True)
class Terms:
    """What a licence says of learning from a model's answers, and where it can be read."""

    distillation: Literal["allowed", "forbidden", "unknown"]
    note: str
    url: str = ""


@dataclass(frozen=True)
class KnownLicences:
    """The content of licences.yaml: terms by name, and patterns with what they stand for."""

    terms: dict[str, Terms]
    by_licence: list[tuple[str, str]]
    by_name: list[tuple[str, str, str]]
    by_text: list[tuple[str, str]]


@cache
def _known() -> KnownLicences:
    raw = yaml.safe_load(pages.text_of("retort.stages.report", "licences.yaml"))
    return TypeAdapter(KnownLicences).validate_python(raw)


def of(model: str) -> Licence:
    """Returns what is known of a model's licence; never raises.

    `model` is a folder, a hub id or the name of a model at an endpoint.
    """
    folder = _folder(model)
    for source, licence_name in (_card(folder), _file(folder)) if folder else ():
        if licence_name:
            return _licence(licence_name, f"{source} of the model", _terms_of(licence_name))
    for source, name in (("its name", model), ("config.json of the model", _origin(folder))):
        for pattern, licence, terms in _known().by_name:
            if match := re.match(pattern, Path(name).name, re.IGNORECASE):
                return _licence(match.expand(licence), f"{source}: {Path(name).name}", terms)
    return _licence(None, "nothing", "nothing")


def _licence(name: str | None, source: str, terms: str) -> Licence:
    known = _known().terms[terms]
    note = " ".join(part for part in (known.note, known.url, CHECK) if part)
    return Licence(name, source, known.distillation, note)


def _terms_of(licence: str) -> str:
    """Returns the name of a licence's terms by its identifier."""
    for pattern, terms in _known().by_licence:
        if re.fullmatch(pattern, licence.lower()):
            return terms
    return "unknown"


def _folder(model: str) -> Path | None:
    """Returns the model's folder on this machine, if it has one: given, or in the hub's cache."""
    if model and Path(model).is_dir():  # no name at all is no name of this folder
        return Path(model)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return None
    from huggingface_hub import try_to_load_from_cache

    for name in ("README.md", "LICENSE", "config.json"):
        path = try_to_load_from_cache(model, name)
        if isinstance(path, str):
            return Path(path).parent
    return None


def _card(folder: Path) -> tuple[str, str | None]:
    """Returns the licence that the front matter of the model's card names."""
    from huggingface_hub import metadata_load

    try:
        front = metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):
        front = {}
    named = front.get("license")
    if named in (None, "other", "unknown"):
        named = front.get("license_name")
    named = named[0] if isinstance(named, list) and named else named
    return "README.md", str(named).strip() if named else None


def _file(folder: Path) -> tuple[str, str | None]:
    """Returns the licence whose text a file of the folder begins with."""
    for path in sorted(folder.glob("LICEN[SC]E*")):
        beginning = " ".join(" ".join(_text(path).splitlines()[:FIRST_LINES]).lower().split())
        for pattern, licence in _known().by_text:
            if match := re.search(pattern, beginning):
                return path.name, match.expand(licence)
    return "LICENSE", None


def _origin(folder: Path | None) -> str:
    """Returns where a folder's configuration says that the model came from."""
    try:
        config = orjson.loads(_text(folder / "config.json")) if folder else {}
    except orjson.JSONDecodeError:
        return ""
    return str(config.get("_name_or_path") or "") if isinstance(config, dict) else ""


def _text(path: Path) -> str:
    """Returns the beginning of a text file; nothing where there is none that can be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(MOST_CHARACTERS)
    except OSError:
        return ""
