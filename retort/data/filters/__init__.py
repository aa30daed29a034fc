"""The filters of curation: functions that return the reason to reject a response, or None.

`curate.filters` names them in order, with their options, and the first reason counts. Reasons are
counted by their text, so they quote nothing of a row. Every public function here is a filter; the
measurements are in `retort.data.text_stats`.
"""

import functools
from collections.abc import Callable
from typing import Annotated

import orjson
from pydantic import AfterValidator, Field

from retort.data import text_stats
from retort.data.filters import refusals
from retort.data.filters.candidate import Candidate
from retort.records import JsonObject, Message, chat_text

Count = Annotated[int, Field(ge=0)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Code = Annotated[str, AfterValidator(text_stats.language_code)]
Schema = Annotated[JsonObject, AfterValidator(text_stats.sound_schema)]
SchemaFile = Annotated[str, AfterValidator(text_stats.schema_file)]

NO_ANSWER = "no answer found"
# The least probability of a language on which a response is rejected.
CERTAIN = 0.8

# Which turn may come after which.
FOLLOWERS = {
    "start": ("system", "user", "assistant"),
    "system": ("user", "assistant"),
    "user": ("assistant",),
    "assistant": ("user",),
    "tool call": ("tool",),
    "tool": ("tool", "assistant"),
}


def finished(item: Candidate) -> str | None:
    """Rejects truncated and missing answers; from truncated ones a student learns not to stop."""
    return None if item.response.state == "accepted" else item.response.state


def non_empty(item: Candidate) -> str | None:
    """Rejects answers of white space only; a tool call is an answer."""
    return None if item.text.strip() or item.response.tool_calls else "empty"


def not_refused(item: Candidate) -> str | None:
    """Rejects requests that the provider refused, and answers that begin with a refusal."""
    if item.response.state in ("refused", "filtered"):
        return item.response.state
    return "the answer refuses" if refusals.refuses(item.text) else None


def language(item: Candidate, *, codes: list[Code] | None = None) -> str | None:
    """Rejects answers that are certainly in another language than those of `codes` (ISO 639).

    The default is the language of the user's last turn. Answers of fewer than 20 letters pass, and
    so do answers and prompts whose language is uncertain.
    """
    code, probability = text_stats.language(item.text)
    if probability < CERTAIN:
        return None
    if codes is None:
        wanted, certainty = text_stats.language_of_prompt(_question(item))
        if certainty < CERTAIN:
            return None
        codes = [wanted]
    return None if code in text_stats.kin(codes) else f"language {code}"


def length(
    item: Candidate,
    *,
    min_words: Count | None = None,
    max_words: Count | None = None,
    min_tokens: Count | None = None,
    max_tokens: Count | None = None,
) -> str | None:
    """Rejects answers shorter or longer than these bounds; a tool call has no words.

    Words are those of the answer alone, tokens those of the whole response.
    """
    num_tokens = item.response.num_tokens
    if not item.calls_tool and (reason := _outside(item.text, min_words, max_words)):
        return reason
    if min_tokens is not None and num_tokens < min_tokens:
        return f"fewer than {min_tokens} tokens"
    if max_tokens is not None and num_tokens > max_tokens:
        return f"more than {max_tokens} tokens"
    return None


def not_repetitive(item: Candidate, *, max_ratio: Ratio = 0.4) -> str | None:
    """Rejects answers that end in a loop, or repeat more than `max_ratio` of their phrases.

    The ratio is `text_stats.repeated_share`; worked answers of GSM8K stay below 0.21.
    """
    whole = item.response.text
    if text_stats.loops(whole):
        return "ends in a loop"
    return "repeats itself" if text_stats.repeated_share(whole) > max_ratio else None


def label_in_set(item: Candidate) -> str | None:
    """Rejects answers that are none of the example's labels, if it has a set of them."""
    return _not_among(item, "no label found", "not one of the labels")


def option_valid(item: Candidate) -> str | None:
    """Rejects answers whose letter is none of the example's options, if it has any."""
    return _not_among(item, "no option found", "not one of the options")


def json_valid(
    item: Candidate, *, schema: Schema | None = None, schema_file: SchemaFile | None = None
) -> str | None:
    """Rejects answers that are not valid JSON, or not valid by `schema` and `schema_file`.

    The whole answer must be JSON: a program that parses the student's answers would fail on code
    fences too.
    """
    try:
        value = orjson.loads(item.text)
    except orjson.JSONDecodeError:
        return "not JSON"
    both = [schema, text_stats.schema_from(schema_file) if schema_file else None]
    faults = (text_stats.schema_fault(value, wanted) for wanted in both if wanted is not None)
    return next((f"schema: {fault}" for fault in faults if fault), None)


def verified(item: Candidate) -> str | None:
    """Rejects answers that differ from the expected one, if the example has one."""
    if item.is_right is None:
        return None
    if item.answer is None:
        return NO_ANSWER
    return None if item.is_right else "wrong answer"


def answered(item: Candidate) -> str | None:
    """Rejects texts in which no answer is found; a tool call is an answer."""
    return None if item.answer is not None or item.response.tool_calls else NO_ANSWER


def summary_length(item: Candidate, *, max_words: Count = 80, min_words: Count = 1) -> str | None:
    """Rejects summaries with too many or too few words."""
    return _outside(item.text, min_words, max_words)


def names_entities(item: Candidate, *, min_ratio: Ratio = 0.6) -> str | None:
    """Rejects summaries with names that the article lacks, or without any of its main names.

    At least `min_ratio` of the summary's capitalised names and its numbers must occur in the
    user's last turn, and the summary must contain one of the five most frequent names of that
    turn. Scripts without capitals have numbers alone; in German all nouns are capitalised and
    count as names: lower the ratio there.
    """
    article = _question(item)
    known, main = text_stats.name_words(article), text_stats.main_names(article)
    known_numbers = {*text_stats.numbers(article), *text_stats.spoken_numbers(article)}
    supported = [text_stats.parts(name) <= known for name in text_stats.names(item.text)]
    supported += [number in known_numbers for number in text_stats.numbers(item.text)]
    if supported and sum(supported) < min_ratio * len(supported):
        return "names what the article does not"
    named = text_stats.name_words(item.text)
    if main and not any(text_stats.parts(name) & named for name in main):
        return "names none of the article's main entities"
    return None


def roles_alternate(item: Candidate) -> str | None:
    """Rejects chats whose turns, the answer's included, are out of order.

    At most one system turn comes first, user and assistant alternate, and each call of a tool is
    followed by one tool turn.
    """
    before, calls = "start", 0
    for turn in [*_chat(item), {"role": "assistant"}]:
        role = turn["role"]
        if role == "tool":
            calls -= 1
        elif calls > 0:
            return "a tool call without its result"
        if role not in FOLLOWERS[before] or calls < 0:
            return f"{role} after {before}"
        if turn.get("tool_calls"):
            calls = len(turn["tool_calls"])
            before = "tool call"
        else:
            before = role
    return None


def unique(item: Candidate) -> str | None:
    """Rejects an answer that equals an earlier one to the same question but for case and spaces."""
    for peer in item.peers:
        if peer is item:
            return None
        same_calls = peer.response.tool_calls == item.response.tool_calls
        if same_calls and text_stats.fold(peer.text) == text_stats.fold(item.text):
            return "the same as an earlier answer"
    return None


def majority(item: Candidate, *, at_least: Annotated[int, Field(ge=1)] = 2) -> str | None:
    """Rejects all answers but the most frequent; all, if it has fewer than `at_least` votes.

    Self-consistency (Wang et al. 2022, arXiv:2203.11171). Answers are compared by the task type;
    a text without an answer has no vote; of equally frequent answers the first wins.
    """
    if item.answer is None:
        return NO_ANSWER
    answers = tuple(peer.answer for peer in item.peers or [item])
    winner, votes = _winner(item.task_type.equal, answers)
    if votes < at_least:
        return f"no answer is given {at_least} times"
    same = winner == item.answer or item.task_type.equal(item.answer, winner)
    return None if same else "not the answer of the majority"


def best_of_n(item: Candidate) -> str | None:
    """Rejects all answers to a question but the best.

    Right answers come before others, then those with a higher score by the judge (if the filter
    `judged` ran before), then shorter ones, then earlier ones.
    """
    best = min(item.peers or [item], key=_rank)
    return None if best is item else "not the best of n"


def first_of_n(item: Candidate) -> str | None:
    """Rejects all answers to a question but the first that is left: of several teachers, the
    answer of the one who comes first in their order."""
    return None if item is (item.peers or [item])[0] else "not the first of n"


def teachers_agree(item: Candidate) -> str | None:
    """Rejects answers that differ from those of the second teacher (`curate.second_teacher`)."""
    if item.answer is None:
        return NO_ANSWER
    if item.second is None:
        return "the second teacher gave no answer"
    second = item.task_type.answer(item.second, item.example)
    if second is None:
        return f"{NO_ANSWER} in the second teacher's text"
    return None if item.task_type.equal(item.answer, second) else "the teachers disagree"


def judged(item: Candidate, *, min_score: Annotated[float, Field(ge=1, le=5)] = 3) -> str | None:
    """Rejects answers that the judge (`curate.judge`) scores below this, from 1 to 5."""
    if item.score is None:
        return "the judge gave no score"
    return None if item.score >= min_score else f"scored below {min_score:g}"


def _chat(item: Candidate) -> list[Message]:
    """Returns the chat that was answered."""
    return item.response.messages or item.example.messages


def _question(item: Candidate) -> str:
    """Returns the user's last turn."""
    return chat_text([turn for turn in _chat(item) if turn["role"] == "user"][-1:])


def _outside(text: str, least: int | None, most: int | None) -> str | None:
    num_words = len(text_stats.words(text))
    if least is not None and num_words < least:
        return f"fewer than {least} words"
    if most is not None and num_words > most:
        return f"more than {most} words"
    return None


def _not_among(item: Candidate, missing: str, wrong: str) -> str | None:
    if not item.example.options:
        return None
    if item.answer is None:
        return missing
    allowed = {text_stats.fold(option) for option in item.example.options}
    return None if text_stats.fold(item.answer) in allowed else wrong


@functools.lru_cache(maxsize=256)
def _winner(equal: Callable[[str, str], bool], answers: tuple[str | None, ...]) -> tuple[str, int]:
    """Returns the most frequent answer, as it was first written, and its number of votes."""
    votes: dict[str, int] = {}
    for answer in answers:
        if answer is not None:
            equals = (known for known in votes if answer == known or equal(answer, known))
            counted_as = next(equals, answer)
            votes[counted_as] = votes.get(counted_as, 0) + 1
    winner = max(votes, key=lambda answer: votes[answer])
    return winner, votes[winner]


def _rank(item: Candidate) -> tuple[bool, float, int]:
    """Returns a sort key that is smallest for the best answer."""
    return not item.is_right, -(item.score or 0.0), len(item.response.text)
