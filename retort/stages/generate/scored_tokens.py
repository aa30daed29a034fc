"""Finds an answer that was scored among the tokens that vLLM's server lists of a whole chat.

Of each token the server lists the most probable ones in its place and its own, which comes first.
The answer is the last text of the chat: behind it stand the token that ends a turn, and nothing
else but white space and special tokens.
"""

import itertools

from retort.engines._replies import UNREADABLE
from retort.records import JsonObject

Entry = JsonObject


def scored_tokens(raw: JsonObject) -> list[Entry]:
    """Returns the entries of a scored answer's tokens and of its end, in the form in which a chat
    completion lists them; none where it has none, or where the chat does not end with it.

    A chat template may change an answer (take off white space or reasoning): then it is not found.
    """
    try:
        lists = _lists(raw["body"])
        found = _place(lists, raw["scored"])
        return [_entry(each) for each in lists[found]] if found else []
    except UNREADABLE:
        return []


def _lists(body: JsonObject) -> list[list[Entry]]:
    """Returns what is listed of each token of the chat but the first, its own entry first."""
    lists = body.get("prompt_logprobs") or body["choices"][0].get("prompt_logprobs") or []
    return [list(listed.values()) for listed in lists[1:]]


def _place(lists: list[list[Entry]], text: str) -> slice | None:
    """Returns which tokens spell the text, and the one that ends it; None where the chat does not
    end with it."""
    spelled = [_text(listed[0]).encode() for listed in lists]
    edges = list(itertools.accumulate(map(len, spelled), initial=0))
    # Where several tokens begin at one byte, the first ones are parts of a character.
    begins = {edge: at for at, edge in reversed(list(enumerate(edges[:-1])))}
    ends = {edge: at for at, edge in enumerate(edges[1:], start=1)}
    whole, wanted = b"".join(spelled), text.encode()
    start = whole.rfind(wanted) if wanted else -1
    while start >= 0:
        first, last = begins.get(start), ends.get(start + len(wanted))
        if first is not None and last is not None and _is_over(lists[last:]):
            return slice(first, min(last + 1, len(lists)))
        start = whole.rfind(wanted, 0, start + len(wanted) - 1)
    return None


def _is_over(rest: list[list[Entry]]) -> bool:
    """Whether nothing is said behind an answer."""
    texts = [_text(listed[0]).strip() for listed in rest]
    return all(not text or text[0] + text[-1] in ("<>", "[]") for text in texts)


def _entry(listed: list[Entry]) -> Entry:
    """Returns a token's entry. Its own is among the listed ones where it has a rank among them."""
    own, *others = listed
    if (own.get("rank") or 0) <= len(others):
        others = listed
    top = [{"token": _text(other), "logprob": other["logprob"]} for other in others]
    return {"token": _text(own), "logprob": own["logprob"], "top_logprobs": top}


def _text(listed: Entry) -> str:
    return listed["decoded_token"] or ""
