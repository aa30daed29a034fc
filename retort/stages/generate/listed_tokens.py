"""Reads the tokens that a chat completion lists: what each spells, and how probable it was.

The bytes of an answer's tokens are exactly its text's, or it is text only, for a reason:
- A last token that the text lacks and that is no plain text (`<|im_end|>`; nothing at all from
  llama.cpp's server) ends the answer. vLLM's and llama.cpp's servers list it, OpenAI does not.
- A space that the text lost before its first token is taken off all strings of that place.
- Where a server numbers its tokens, as llama.cpp's does, a sampled token spells what its list says
  under its number: its own bytes are what the server sent at that moment. Such a server leaves
  tokens out that end amid a character; then the answer has more tokens than are listed.
- Bytes that are missing are the token's text, if that has no broken characters.
- vLLM's server has no bytes of a part of a character: such a token spells nothing, and the last
  part spells it all. They are one place, which has the product of their probabilities, and of the
  first part's list what spells something.

A string that is twice in a list is one token with the mass of both. The probability of a sampled
token that is not in its list is the one told or, where that is -9999.0, the most that it can be.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from retort.engines._replies import UNREADABLE
from retort.records import JsonObject, Response
from retort.stages.generate.scored_tokens import scored_tokens

NONE_LISTED = "it lists no log-probabilities"
# What servers give for a log-probability that they do not know, and what rounding puts above 0.
UNKNOWN, MOST = -9999.0, 1e-4
MOST_MASS = 1.001
# What may stand above the least of a list without being in it: equal but for rounding.
ROUNDING = 1e-3
# In a token's text: broken characters, and OpenAI's way to write them.
BROKEN, BROKEN_BYTES = re.compile(r"\ufffd|^bytes:\\x"), "\ufffd".encode()
END = re.compile(rb"(<.*>|\[.*\])?", re.DOTALL)


class TextOnlyError(Exception):
    """Why nothing but the text can be learned of an answer."""


class Token(NamedTuple):
    """A token as it is listed. `is_text`: an answer spells it in its text.

    `number` tells tokens apart that spell nothing, where the server numbers them.
    """

    spelled: bytes
    number: int | None = None
    is_text: bool = False


@dataclass(frozen=True)
class Place:
    """A place in an answer: the sampled token, and the listed ones, the most probable first."""

    token: Token
    logprob: float
    tokens: list[Token]
    logprobs: list[float]

    @property
    def is_end(self) -> bool:
        """Whether the answer ends with this token, which its text lacks."""
        return not self.token.is_text


def listed_tokens(raw: JsonObject) -> list[Any]:
    """Returns the entries of an answer's tokens as they were given; none where it has none."""
    if "scored" in raw:
        return scored_tokens(raw)
    try:
        content = raw["body"]["choices"][0]["logprobs"]["content"]
    except UNREADABLE:
        return []
    return content if isinstance(content, list) else []


def read_places(raw: JsonObject, response: Response, k: int) -> list[Place]:
    """Returns the places of an answer, with at most the k most probable tokens of each.

    Raises `TextOnlyError`.
    """
    entries = listed_tokens(raw)
    if response.tool_calls:
        raise TextOnlyError("it calls tools, which are no part of its text")
    if not entries:
        raise TextOnlyError(NONE_LISTED)
    try:
        if entries[0].get("id") is not None and response.num_tokens > len(entries):
            raise TextOnlyError("tokens that end amid a character are not listed")
        entries, spelled = _characters(entries)
        num_text, skipped = _spelling(spelled, response)
        places = []
        for at, entry in enumerate(entries):
            prefix = skipped if at == 0 else b""
            own = spelled[at].removeprefix(prefix)
            if at < num_text and not own:
                raise TextOnlyError("a token in it spells nothing")
            number = None if own else entry.get("id")
            places.append(_place(entry, Token(own, number, at < num_text), prefix, k))
    except (*UNREADABLE, ArithmeticError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise TextOnlyError(f"its log-probabilities have an odd shape ({cause})") from None
    return places


def _characters(entries: list[Any]) -> tuple[list[Any], list[bytes]]:
    """Returns the entries, parts of a character as one, and what each spells."""
    found: list[tuple[Any, bytes]] = []
    parts: list[Any] = []
    for entry in entries:
        spelled = _sampled(entry)
        if not spelled and entry.get("id") is None:
            parts.append(entry)
        elif parts and spelled[:1] >= b"\x80":
            told = [_logprob(part) for part in (*parts, entry)]
            if min(told) <= UNKNOWN:
                raise TextOnlyError("the probability of a part of a character is not told")
            whole = {"bytes": list(spelled), "logprob": sum(told)}
            others = [other for other in parts[0].get("top_logprobs") or () if _bytes(other)]
            found.append(({**whole, "top_logprobs": [whole, *others]}, spelled))
            parts = []
        else:
            found += [(part, b"") for part in parts] + [(entry, spelled)]
            parts = []
    found += [(part, b"") for part in parts]
    return [entry for entry, _ in found], [spelled for _, spelled in found]


def _spelling(spelled: list[bytes], response: Response) -> tuple[int, bytes]:
    """Returns how many of the tokens spell the text, and what the text lost before them."""
    numbers, text = [len(spelled)], response.text.encode()
    if response.finish_reason == "stop" and END.fullmatch(spelled[-1]):
        numbers.insert(0, len(spelled) - 1)
    for skipped in (b"", b" "):
        for number in numbers:
            if b"".join(spelled[:number]) == skipped + text:
                return number, skipped
    raise TextOnlyError("its tokens do not spell its text")


def _place(entry: JsonObject, token: Token, prefix: bytes, k: int) -> Place:
    found: dict[Token, float] = {}
    for other in entry.get("top_logprobs") or ():
        spelled, value = _bytes(other).removeprefix(prefix), _logprob(other)
        number = None if spelled else other.get("id")
        same = token.is_text and spelled == token.spelled
        key = token if same else Token(spelled, number)
        before = found.get(key)
        found[key] = value if before is None else _added(before, value)
    own = _logprob(entry)
    if token not in found and own > UNKNOWN:
        if found and own > min(found.values()) + ROUNDING:
            raise TextOnlyError("a sampled token is not in its list, though likelier than others")
        found[token] = own
    ranked = sorted(found.items(), key=lambda item: -item[1])[:k]
    mass = sum(math.exp(value) for _, value in ranked)
    if not ranked or mass > MOST_MASS:
        reason = "they add up to more than 1" if ranked else "some are not told"
        raise TextOnlyError(f"its probabilities cannot be used: {reason}")
    if token not in found:
        found[token] = min(ranked[-1][1], math.log(max(1 - mass, 1e-12)))
    return Place(token, found[token], [key for key, _ in ranked], [value for _, value in ranked])


def _added(first: float, second: float) -> float:
    """Returns the logarithm of the sum of two probabilities."""
    high, low = max(first, second), min(first, second)
    return min(0.0, high + math.log1p(math.exp(low - high)))


def _sampled(entry: JsonObject) -> bytes:
    """Returns the bytes of a sampled token."""
    number = entry.get("id")
    if number is not None:
        for other in entry.get("top_logprobs") or ():
            if other.get("id") == number:
                return _bytes(other)
    return _bytes(entry)


def _bytes(listed: JsonObject) -> bytes:
    """Returns what a listed token spells; nothing where that is unknown."""
    data, text = listed.get("bytes"), listed.get("token")
    if isinstance(data, list):
        spelled = bytes(data)
        return b"" if BROKEN_BYTES in spelled else spelled
    if data is None and isinstance(text, str):
        return b"" if BROKEN.search(text) else text.encode()
    raise TypeError(f"bytes {type(data).__name__} of token {type(text).__name__}")


def _logprob(listed: JsonObject) -> float:
    value = listed["logprob"]
    if type(value) not in (float, int) or not value <= MOST:
        raise TextOnlyError("a log-probability is no number, or above 0")
    return max(min(float(value), 0.0), UNKNOWN)
