"""Models by the names that people write: what such a name stands for, and what it takes to run.

A name with a date (gpt-4o-2024-08-06) or -latest is kept as it is: it names one version at the
provider.
"""

import functools
import re
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from retort.errors import SpecError
from retort.records import JsonObject

# What names have or lack without meaning another model.
PREFIXES = ("meta", "microsoft", "deepseekai", "metallama", "openai", "anthropic")
SUFFIXES = ("instruct", "it", "chat", "hf")
DATED = re.compile(r"-(?:20\d{6}|20\d\d-\d\d-\d\d|latest)$")


class CataloguedModel(BaseModel):
    """An entry of catalogue.yaml, whose head says what each field means."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    hub: str | None = None
    engine: str | None = None
    api: str | None = None
    key: str | None = None
    parameters: int | None = None
    context: int
    bytes: int = 2
    licence: str
    tokenizer: str | None = None
    gated: bool = False
    closed: date | None = None

    def __str__(self) -> str:
        if self.hub is None:
            ended = f"; its provider ends it on {self.closed}" if self.closed else ""
            return (
                f"{self.api} of engine {self.engine}, with the key in {self.key}; up to "
                f"{self.context:,} tokens; {self.licence}{ended}"
            )
        assert self.parameters
        gigabytes = self.parameters * self.bytes / 1e9
        gated = ", gated: the hub wants an account that accepted the licence" if self.gated else ""
        return (
            f"the hub's {self.hub}{gated}; {self.parameters / 1e9:,.1f} billion parameters, "
            f"{gigabytes:,.0f} GB of weights; up to {self.context:,} tokens; {self.licence}"
        )


@functools.cache
def models() -> dict[str, CataloguedModel]:
    """Returns the models of the catalogue by their names."""
    text = (files("retort.spec") / "catalogue.yaml").read_text("utf-8")
    entries: dict[str, JsonObject] = yaml.safe_load(text)
    return {name: CataloguedModel(name=name, **entry) for name, entry in entries.items()}


def find(name: str) -> CataloguedModel | None:
    """Returns the model that a name stands for, however it is written; None for any other name."""
    return _by_key().get(_key(name))


def resolve(section: JsonObject, key: str, where: str, folder: Path) -> str | None:
    """Replaces a catalogued name under a key of a section by what it stands for; returns a sentence
    on that, or None where the value is a path (from `folder`), a hub id, a name at an endpoint or
    unknown.

    A model at an endpoint brings its engine; a teacher there is asked for its text alone, unless
    the section says otherwise. Raises `SpecError` where such a model cannot be used, as for a
    student.
    """
    written = section.get(key)
    is_at_endpoint = section.get("endpoint") or section.get("engine", "auto") not in ("auto", None)
    if not isinstance(written, str) or "/" in written:
        return None
    model = find(written)
    if model is None or is_at_endpoint or (folder / written).exists():
        return None
    if model.hub:
        section[key] = model.hub
        return f"{where}: {written} is {model}"
    if key == "student":
        raise SpecError(
            f"{where}: {written} is {model}; its weights are not to be had, and a student needs "
            f"them. Name an open model: {', '.join(open_names())}"
        )
    section |= {key: written if DATED.search(written) else model.api, "engine": model.engine}
    if key == "teacher":
        section.setdefault("top_k", 0)
    return f"{where}: {written} is {model}"


def why_text_alone(teacher: Any, student: Any) -> str | None:
    """Returns why a student cannot learn a teacher's distribution, as far as the catalogue knows
    both; else None."""
    names = [name for name in (teacher, student) if isinstance(name, str)]
    found = [find(name) for name in names if not name.startswith((".", "/", "~"))]
    if len(found) < 2 or None in found:
        return None
    by, to = (model for model in found if model)
    if by.hub is None:
        return f"{by.name} is asked for its text alone"
    if by.tokenizer != to.tokenizer:
        return f"{by.name} and {to.name} have different tokenizers"
    return None


def open_names() -> list[str]:
    """Returns the names of the models whose weights can be had."""
    return [name for name, model in models().items() if model.hub]


@functools.cache
def _by_key() -> dict[str, CataloguedModel]:
    found = {_key(name): model for name, model in models().items()}
    for model in models().values():
        found |= {_key(name): model for name in (model.hub, model.api) if name}
    return found


def _key(name: str) -> str:
    """Returns what spellings of a name have in common: Meta-Llama-3.1-8B-Instruct, llama3.1_8b."""
    last = DATED.sub("", name.strip().lower().rpartition("/")[2])
    parts = [part for part in re.split(r"[^a-z0-9]+", last) if part]
    while parts and parts[0] in PREFIXES:
        parts = parts[1:]
    while len(parts) > 1 and parts[-1] in SUFFIXES:
        parts = parts[:-1]
    return "".join(parts)
