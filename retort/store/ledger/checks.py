"""The boundary around one answer: whatever is wrong with it makes that answer a failed response."""

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson

from retort.records import STATES, JsonObject, Response
from retort.store.ledger.segment import StoredAnswer
from retort.store.signals import Signal

MAX_COUNT = 1 << 31
Parse = Callable[[str, JsonObject], Response]


def response_of(answer: StoredAnswer, parse: Parse) -> Response:
    """Returns an answer as the engine parses it; a failed response, with the cause, for one that
    has a defect, that `parse` raises for, or that is parsed to values of the wrong type."""
    cause = answer.defect
    try:
        if not cause:
            response = parse(answer.key, answer.raw)
            cause = _wrong_value(response)
        if not cause:
            # What the artifact cannot hold fails here, by itself.
            if response.tool_calls or response.cause or not response.text.isascii():
                orjson.dumps(response)
            return response
    except MemoryError:
        raise
    except Exception as error:  # a raw answer is data: it may make `parse` raise anything
        cause = f"{type(error).__name__}: {error}"
    cause = f"unreadable answer: {cause}".encode(errors="replace").decode()
    return Response(answer.key, "", [], "error", 0, 0, state="failed", cause=cause)


def defect_of(signal: Signal, vocabulary: int) -> str:
    """Returns why a signal cannot be stored; empty for one that can."""
    for ids in (signal.ids_TK, signal.target_ids_T):
        if ids.size and not 0 <= ids.min() <= ids.max() < vocabulary:
            span = f"{ids.min()} to {ids.max()}"
            return f"its signal has the token ids {span}, of {vocabulary} in the vocabulary"
    if np.isnan(signal.logprobs_TK).any() or np.isnan(signal.tail_T).any():
        return "its signal has a log-probability that is not a number"
    return ""


def is_transient(answer: StoredAnswer) -> bool:
    """Whether an answer failed for a reason that may pass."""
    error = answer.raw.get("error") if isinstance(answer.raw, dict) else None
    return isinstance(error, dict) and bool(error.get("transient"))


def _wrong_value(response: Response) -> str:
    """Returns which value of a response has the wrong type or range; empty where none has."""
    ids, calls = response.token_ids, response.tool_calls
    if type(response.text) is not str or type(response.finish_reason) is not str:
        value = response.finish_reason if isinstance(response.text, str) else response.text
        return f"{_shown(value)} is no text"
    for count in (response.num_tokens, response.num_prompt_tokens):
        if type(count) is not int or not 0 <= count < MAX_COUNT:
            return f"{_shown(count)} is no number of tokens"
    # The array raises for what is no integer of 32 bits.
    if type(ids) is not list or (array("i", ids) and min(ids) < 0):
        return f"{_shown(ids)} are no token ids"
    if calls is not None and not (isinstance(calls, list) and set(map(type, calls)) <= {dict}):
        return f"{_shown(calls)} are no tool calls"
    return "" if response.state in STATES else f"{_shown(response.state)} is no state"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
