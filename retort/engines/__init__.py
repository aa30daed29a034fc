"""Engines turn chats into text and, where they can, give the teacher's signal. One file each.

A file offers `open_engine(settings) -> Engine`. Engines are opened inside a child process and
closed by ending it.
"""

import importlib
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from retort.errors import SpecError
from retort.records import Message, Response
from retort.registry import find_file
from retort.signals import Signal


@dataclass(frozen=True)
class Request:
    """One chat to answer; the id joins the answer to its example."""

    id: str
    messages: list[Message]


@dataclass(frozen=True)
class Settings:
    """All that an engine needs to know of a job. `runtime` is the spec's EngineRuntime as JSON."""

    model: str
    temperature: float
    top_p: float
    max_tokens: int
    max_model_len: int | None
    top_k: int
    dtype: str
    seed: int
    runtime: dict[str, Any]


Answer = tuple[Response, Signal | None]


class Engine(Protocol):
    """An open model."""

    facts: dict[str, Any]

    def generate(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Yields each answer as it finishes, in any order. Requests are taken as room allows."""


def resolve(name: str, top_k: int) -> str:
    """Returns the engine's name with `auto` decided: vllm where it is installed.

    Raises `SpecError` for an unknown engine, one that is not installed, or one without signals
    where a signal is asked for.
    """
    if name == "auto":
        name = "vllm" if importlib.util.find_spec("vllm") else "transformers"
    if name == "vllm" and not importlib.util.find_spec("vllm"):
        raise SpecError("engine vllm is not installed here; use engine: transformers, or auto")
    module = find_engine(name)
    if top_k and not getattr(module, "GIVES_SIGNAL", False):
        raise SpecError(f"engine {name} gives no signal; set generate.top_k: 0")
    return name


def find_engine(name: str) -> Any:
    """Returns an engine's module; importing it loads nothing heavy."""
    return find_file("engine", name, importlib.import_module(__name__))
