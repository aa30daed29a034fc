"""The formats of rows. Every public function in this file is one; its name is the format's name.

Each takes a row of a file and returns it in the one form that task types read, with its columns
also under our names: prompt, completion, question, context, choices, choice_letters, answer,
premise, hypothesis, label, article, summary, text, system. It raises ValueError with the reason.
"""

import re
from typing import Any

from retort.data.formats import _columns as names
from retort.data.formats._chat import is_asked, read_chat, turns_in, unquoted
from retort.data.formats._columns import any_row, choices_of, first, reply_in, row_of, text
from retort.data.formats._recognition import find_format, read_row, recognise
from retort.data.formats._replies import reply_of, request_of
from retort.records import JsonObject, Message, Row

__all__ = ["find_format", "read_row", "recognise"]

SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):\s?")


def messages(row: JsonObject) -> Row:
    """A chat: OpenAI's, its fine-tuning rows, Anthropic's with `system` beside the messages."""
    return row_of(row, {}, _chat(row, row.get("messages")))


def bedrock(row: JsonObject) -> Row:
    """Bedrock's `bedrock-conversation-2024`: turns and `system` as lists of {text}."""
    used = ("system", "schemaVersion")
    return row_of(row, {}, read_chat(row.get("messages"), row.get("system")), used)


def openai_batch(row: JsonObject) -> Row:
    """A request of OpenAI's batch files: `custom_id` and the request as `body`."""
    body = row.get("body")
    if not isinstance(body, dict):
        raise ValueError("body must be an object with messages")
    turns, system = request_of(body)
    outer = {name: value for name, value in row.items() if name != "body"}
    return row_of(
        {**body, **outer}, {}, read_chat(turns, system), ("input", "prompt", "instructions")
    )


def stored_completion(row: JsonObject) -> Row:
    """A request with its reply, as OpenAI stores it: the reply becomes the last turn."""
    request = row.get("request")
    request = request if isinstance(request, dict) else row
    turns, system = request_of(request)
    chat = read_chat([*turns, *reply_of(row)], system)
    value = row.get("input")
    inner = value if isinstance(value, dict) else request
    tools = {"tools": row.get("tools") or inner.get("tools")}
    used = ("request", "response", "input", "choices", "output", "instructions")
    return row_of({**row, **tools}, {}, chat, used)


def sharegpt(row: JsonObject) -> Row:
    """ShareGPT: `conversations` of {from, value}, from human, gpt or system; Gemini: `contents`."""
    return row_of(row, {}, _chat(row, first(row, names.CONVERSATION)), names.CONVERSATION)


def alpaca(row: JsonObject) -> Row:
    """Alpaca: `instruction`, `input`, `output` and `history`; Dolly's names for them too."""
    prompt = text(row, names.INSTRUCTION)
    extra = first(row, ("input", "context"))
    if isinstance(extra, str) and extra.strip():
        prompt = f"{prompt}\n\n{extra}"
    reply = first(row, ("output", "response", "completion", "chosen"))
    return _asked(row, {"prompt": prompt}, "completion", reply_in(reply))


def prompt_completion(row: JsonObject) -> Row:
    """`prompt` with `completion`, `response` or `chosen`: texts, or lists of turns as TRL's.

    A completion that preference data labels as a bad one (`label: false`) is left out.
    """
    prompt, reply = turns_in(row.get("prompt")), turns_in(first(row, names.COMPLETION))
    if not isinstance(prompt, list) and not isinstance(reply, list):
        return _asked(row, {"prompt": text(row, names.PROMPT)}, "completion", reply)
    asked = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    if isinstance(reply, list) and any(is_asked(turn) for turn in reply):
        asked = []  # UltraFeedback's form: the reply begins with the prompt
    replies = [{"role": "assistant", "content": reply}] if isinstance(reply, str) else reply
    if not isinstance(replies, list | None):
        raise ValueError("the completion is neither a text nor a list of turns")
    replies = [] if names.verdict(row) is False else replies
    earlier = names.earlier_turns(row)
    chat = read_chat([*earlier, *asked, *(replies or [])], first(row, names.SYSTEM))
    return row_of(row, {}, chat, ("prompt", "completion", names.HISTORY))


def preference(row: JsonObject) -> Row:
    """`chosen` and `rejected` chats that begin with the prompt: turns, or Anthropic's transcripts.

    The chosen one is read.
    """
    chosen = turns_in(row.get("chosen"))
    if isinstance(chosen, str):
        chosen = _transcript(chosen)
    return row_of(row, {}, read_chat(chosen, first(row, names.SYSTEM)), ("chosen", "rejected"))


def question_answer(row: JsonObject) -> Row:
    """A question with its answer, SQuAD's with its context, ARC's and MMLU's with the choices.

    An answer that is a letter, an index or a text of the choices is kept so, and so are several
    right answers if there are no choices. An answer labelled as wrong (WikiQA) is left out.
    """
    fields = {"question": text(row, names.QUESTION), "context": first(row, names.CONTEXT)}
    answer = first(row, names.ANSWER)
    if choices := choices_of(row):
        fields["choices"], fields["choice_letters"] = choices
        answer = first(row, names.LABEL) if answer is None else answer
    if isinstance(answer, dict):
        answer = first(answer, ("text", "value", "content"))
    if "choices" not in fields:
        answer = reply_in(answer)
    if isinstance(answer, list) and (len(answer) < 2 or "choices" in fields):
        answer = answer[0] if answer else None
    return _asked(row, fields, "answer", answer, names.NUMBERED_TRUTHS)


def nli(row: JsonObject) -> Row:
    """Two texts and what the first says about the second; a label that is a number stays one."""
    fields = {"premise": text(row, names.PREMISE), "hypothesis": text(row, names.HYPOTHESIS)}
    return row_of(row, {**fields, "label": first(row, names.LABEL)})


def summarization(row: JsonObject) -> Row:
    """A text with its summary: `article`, `document` or `dialogue`, `highlights` or `abstract`."""
    article = text(row, names.ARTICLE)
    return row_of(row, {"article": article, "summary": first(row, names.SUMMARY)})


def text_label(row: JsonObject) -> Row:
    """A text with its class; a label that is a number stays one."""
    return row_of(row, {"text": text(row, names.TEXT), "label": first(row, names.LABEL)})


def columns(row: JsonObject) -> Row:
    """Any columns, unchanged: for a task type of the user's own that no other format fits."""
    return any_row(row, {})


def _chat(row: JsonObject, turns: Any) -> list[Message]:
    """Returns a row's chat, with the chosen reply that preference data may have beside it.

    A reply that it labels as a bad one is left out.
    """
    turns, chosen = unquoted(turns), turns_in(row.get("chosen"))
    if isinstance(turns, list) and isinstance(chosen, list) and not any(map(is_asked, chosen)):
        turns = [*turns, *chosen]
    chat = read_chat(turns, first(row, names.SYSTEM))
    while names.verdict(row) is False and chat[-1]["role"] != "user":
        chat.pop()
    return chat


def _asked(
    row: JsonObject,
    fields: JsonObject,
    reply_name: str,
    reply: Any,
    truths: dict[str, bool] = names.TRUTHS,
) -> Row:
    """Returns a row with a question and its reply, as a chat if it has earlier turns.

    A reply that preference data labels as a bad one is left out.
    """
    used: tuple[str, ...] = ()
    is_good = names.verdict(row, truths)
    if reply is not None and "choices" not in fields and is_good is not None:
        used = (reply_name, *names.VERDICTS)
        reply = reply if is_good else None
    if isinstance(unquoted(row.get(names.HISTORY)), list):
        used += (names.HISTORY,)
    earlier = names.earlier_turns(row)
    if not earlier:
        return row_of(row, {**fields, reply_name: reply}, used=used)
    if "choices" in fields:
        raise ValueError("history beside choices is not read; write the choices into the question")
    turns = [*earlier, {"role": "user", "content": fields.get("prompt", fields.get("question"))}]
    if reply is not None:
        turns.append({"role": "assistant", "content": reply})
    chat = read_chat(turns, first(row, names.SYSTEM))
    return row_of(row, {}, chat, (*fields, reply_name, *used))


def _transcript(chosen: str) -> list[Message]:
    """Returns the turns of a text in which each begins with "Human:" or "Assistant:"."""
    roles = {"Human": "user", "Assistant": "assistant"}
    _, *parts = SPEAKER.split(chosen)
    if not parts:
        raise ValueError("chosen is neither a list of turns nor a text with Human: and Assistant:")
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": roles[name], "content": content.strip()} for name, content in pairs]
