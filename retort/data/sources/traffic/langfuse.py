"""Exports of Langfuse: traces and observations, of its tables, its API and its blob storage.

Sources: langfuse.com/docs/api-and-data-platform/features, "Export from UI" and "Blob storage export
field reference" (names in snake case, times without a zone in UTC), and the API's schemas
`Observation` and `TraceWithFullDetails` (names in camel case).
"""

from collections.abc import Iterator
from typing import Any

from retort.data.formats._chat import unquoted
from retort.data.sources.traffic.call import (
    EMBEDDINGS,
    FAILED,
    Call,
    LeftOut,
    asked,
    replied,
    scalars,
    seconds_of,
)
from retort.records import JsonObject

# The types of observations; only the first is a call of a model.
TYPES = {
    *("GENERATION", "SPAN", "EVENT", "EMBEDDING", "AGENT", "TOOL", "CHAIN", "RETRIEVER"),
    *("EVALUATOR", "GUARDRAIL"),
}
# Our name of a column to those that Langfuse's exports have.
NAMES = {
    "trace": ("traceId", "trace_id"),
    "session": ("sessionId", "session_id"),
    "start": ("startTime", "start_time", "timestamp"),
    "model": ("model", "provided_model_name", "providedModelName"),
    "service": ("traceName", "trace_name"),
}


def is_observation(row: JsonObject) -> bool:
    """Whether a row is an observation of a trace."""
    return row.get("type") in TYPES and bool(_of(row, "trace") or _of(row, "start"))


def is_trace(row: JsonObject) -> bool:
    """Whether a row is a trace, with its observations or without them."""
    if isinstance(row.get("trace"), dict) and isinstance(row.get("observations"), list):
        return True
    return "timestamp" in row and not {"sessionId", "session_id"}.isdisjoint(row)


def of_trace(row: JsonObject) -> Iterator[Call | LeftOut]:
    """Yields the calls among a trace's observations; of a trace without them, its own chat."""
    trace = row["trace"] if isinstance(row.get("trace"), dict) else row
    observations = unquoted(row.get("observations"))
    some = (
        [o for o in observations if isinstance(o, dict)] if isinstance(observations, list) else []
    )
    for observation in some:
        yield of_observation(observation, trace)
    if not some:
        yield of_observation({**trace, "type": "GENERATION", "traceId": trace.get("id")}, trace)


def of_observation(row: JsonObject, trace: JsonObject | None = None) -> Call | LeftOut:
    """Returns the call that an observation is, or why it is none."""
    try:
        return _call(row, trace or {})
    except LeftOut as reason:
        return reason


def _call(row: JsonObject, trace: JsonObject) -> Call:
    if row["type"] == "EMBEDDING":
        raise LeftOut(EMBEDDINGS)
    if row["type"] != "GENERATION":
        raise LeftOut("an observation that is no generation")
    if row.get("level") == "ERROR":
        raise LeftOut(FAILED)
    turns, tools = asked(row.get("input"))
    tags = unquoted(row.get("tags") or trace.get("tags"))
    more = scalars(trace.get("metadata")) | scalars(row.get("metadata"))
    more |= {"tags": tags} if isinstance(tags, list) and tags else {}
    environment = row.get("environment") or trace.get("environment")
    return Call(
        turns,
        replied(row.get("output")),
        conversation=_of(row, "session") or _of(trace, "session") or _of(row, "trace"),
        seconds=seconds_of(_of(row, "start")),
        model=_of(row, "model"),
        service=_of(row, "service") or trace.get("name") or row.get("name"),
        request=row.get("id"),
        tools=tools,
        more=more | ({"environment": environment} if environment else {}),
    )


def _of(row: JsonObject, what: str) -> Any:
    return next((row[name] for name in NAMES[what] if row.get(name)), None)
