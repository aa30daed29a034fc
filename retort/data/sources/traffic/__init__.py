"""Traffic that teams have logged: a row for each call of a chat model, its reply the last turn.

OpenTelemetry's spans, Langfuse's exports, LiteLLM's logs, MLflow's traces and vLLM's request logs
are recognised by what they hold, whatever file it stands in. What is no answered chat is left out:
it becomes a row without a value, whose `group` says that it is no bad one. Rows of one conversation
have one group, so that all of its turns stay on one side of a split.
"""

from collections.abc import Callable, Iterable, Iterator

from retort.data.formats._chat import unquoted
from retort.data.sources.source_row import SourceRow, bad, dumped, too_long
from retort.data.sources.traffic import langfuse, litellm, spans, vllm_log
from retort.data.sources.traffic.call import Call, LeftOut, seconds_of
from retort.records import JsonObject
from retort.spec.prepare import Traffic

# One record may hold thousands of calls; each of these is a row, and measured as such.
RECORD_BYTES = 1 << 28
CONTAINERS = (b'"resourceSpans"', b'"scopeSpans"', b'"spans"', b'"observations"')
# Where a row of any other form may say when it was, and what it belongs to.
TIMES = ("time", "timestamp", "created_at", "created", "startTime")
CONVERSATIONS = ("conversation", "conversation_id", "session_id", "sessionId")
Found = Iterable[Call | LeftOut]
is_log = vllm_log.is_log


def holds_many(head: bytes) -> bool:
    """Whether the records of a file that begins so may hold many rows each."""
    return any(name in head for name in CONTAINERS)


def calls(rows: Iterator[SourceRow], most: int, chosen: Traffic | None) -> Iterator[SourceRow]:
    """Yields rows, those of logged calls as chats; of a source of traffic only what it chooses."""
    for row in rows:
        reader = None if row.value is None else _reader(row.value)
        if reader is not None and row.value is not None:
            try:
                for call in reader(row.value):
                    yield _row(row, call, most, chosen)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                reason = f"a broken record: {type(error).__name__}: {error}"
                yield bad(row.file, row.line, row.raw, reason)
        elif row.value is not None and len(row.raw) > most:
            yield bad(row.file, row.line, row.raw, too_long(most))
        elif row.value is None or chosen is None:
            yield row
        else:
            yield _plain(row, row.value, chosen)


def log_rows(
    file: str, blocks: Iterator[bytes], most: int, chosen: Traffic | None
) -> Iterator[SourceRow]:
    """Yields the rows of a log of vLLM."""
    for row, call in vllm_log.logged_calls(file, blocks, most):
        yield row if row.error else _row(row, call, most, chosen)


def _reader(value: JsonObject) -> Callable[[JsonObject], Found] | None:
    """Returns what reads the calls in a record; None for a row of any other form."""
    if "resourceSpans" in value or "scopeSpans" in value:
        return spans.of_export
    if litellm.is_call(value):
        return lambda row: [litellm.of_call(row)]
    if _is_mlflow(value):
        return spans.of_trace
    if langfuse.is_observation(value):
        return lambda row: [langfuse.of_observation(row)]
    return langfuse.of_trace if langfuse.is_trace(value) else None


def _is_mlflow(value: JsonObject) -> bool:
    if "info" in value and isinstance(data := unquoted(value.get("data")), dict):
        return "spans" in data
    return "trace_id" in value and "trace_metadata" in value


def _row(row: SourceRow, call: Call | LeftOut, most: int, chosen: Traffic | None) -> SourceRow:
    """Returns a call as a row, or the row without a value that says why it is left out."""
    try:
        if isinstance(call, LeftOut):
            raise call
        call.check()
        value = call.value()
        if chosen:
            _check(chosen, call.seconds, value["metadata"])
    except LeftOut as reason:
        return SourceRow(row.file, row.line, b"", None, str(reason), "left out")
    raw = dumped(value)
    if len(raw) > most:
        return bad(row.file, row.line, raw, too_long(most))
    group = call.conversation or call.request or f"{row.file}:{row.line}"
    return SourceRow(row.file, row.line, raw, value, None, str(group))


def _plain(row: SourceRow, value: JsonObject, chosen: Traffic) -> SourceRow:
    """Returns a row of any other form, where the source chooses it."""
    metadata = unquoted(value.get("metadata"))
    known = {**value, **metadata} if isinstance(metadata, dict) else value
    when = next((known[name] for name in TIMES if known.get(name)), None)
    group = next((known[name] for name in CONVERSATIONS if known.get(name)), None)
    try:
        _check(chosen, seconds_of(when), known)
    except LeftOut as reason:
        return SourceRow(row.file, row.line, b"", None, str(reason), "left out")
    return SourceRow(
        row.file, row.line, row.raw, value, None, None if group is None else str(group)
    )


def _check(chosen: Traffic, seconds: float | None, metadata: JsonObject) -> None:
    """Raises `LeftOut` for a row outside the window, and for one of other metadata."""
    if chosen.since or chosen.until:
        if seconds is None:
            raise LeftOut("a call without a time")
        if not chosen.first_second <= seconds < chosen.last_second:
            raise LeftOut("outside since and until")
    for name, wanted in chosen.where.items():
        allowed = {wanted} if isinstance(wanted, str) else set(wanted)
        value = metadata.get(name)
        if allowed.isdisjoint(map(str, value) if isinstance(value, list) else [str(value)]):
            raise LeftOut(f"other metadata than where: {name}")
