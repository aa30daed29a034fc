"""The forms that rows come in. Every public function that stands here is one, and is its name.

Each takes a row as its file has it and returns it in our one form, with its columns also under
our names: prompt, completion, question, context, choices, choice_letters, answer, premise,
hypothesis, label, article, summary, text, system. It raises ValueError with the reason.
"""

from typing import Any

from retort.data.formats import _columns as names
from retort.data.formats._chat import is_asked, read_chat, turns_in
from retort.data.formats._columns import choices_of, first, row_of, text
from retort.data.formats._recognition import read_row, recognise
from retort.data.formats._replies import reply_of, request_of
from retort.records import Row

__all__ = ["read_row", "recognise"]


def messages(row: dict[str, Any]) -> Row:
    """A chat: OpenAI's, its fine-tuning rows, Anthropic's with `system` beside the messages."""
    return row_of(row, {}, read_chat(row.get("messages"), first(row, names.SYSTEM)))


def bedrock(row: dict[str, Any]) -> Row:
    """Bedrock's `bedrock-conversation-2024`: turns and `system` as lists of {text}."""
    used = ("system", "schemaVersion")
    return row_of(row, {}, read_chat(row.get("messages"), row.get("system")), used)


def openai_batch(row: dict[str, Any]) -> Row:
    """A request of OpenAI's batch files: `custom_id` and the request as `body`."""
    body = row.get("body")
    if not isinstance(body, dict):
        raise ValueError("body must be an object with messages")
    turns, system = request_of(body)
    outer = {name: value for name, value in row.items() if name != "body"}
    return row_of(
        {**body, **outer}, {}, read_chat(turns, system), ("input", "prompt", "instructions")
    )


def stored_completion(row: dict[str, Any]) -> Row:
    """A request with its reply, as OpenAI stores it: the reply becomes the last turn."""
    request = row.get("request")
    request = request if isinstance(request, dict) else row
    turns, system = request_of(request)
    chat = read_chat([*turns, *reply_of(row)], system)
    given = row.get("input")
    inner = given if isinstance(given, dict) else request
    tools = {"tools": row.get("tools") or inner.get("tools")}
    used = ("request", "response", "input", "choices", "output", "instructions")
    return row_of({**row, **tools}, {}, chat, used)


def sharegpt(row: dict[str, Any]) -> Row:
    """ShareGPT: `conversations` of {from, value}, from human, gpt or system."""
    turns = first(row, names.CONVERSATION)
    return row_of(row, {}, read_chat(turns, first(row, names.SYSTEM)), names.CONVERSATION)


def alpaca(row: dict[str, Any]) -> Row:
    """Alpaca: `instruction`, `input` and `output`; Dolly's names for them too."""
    prompt = text(row, names.INSTRUCTION)
    given = first(row, ("input", "context"))
    if isinstance(given, str) and given.strip():
        prompt = f"{prompt}\n\n{given}"
    completion = first(row, ("output", "response", "completion"))
    return row_of(row, {"prompt": prompt, "completion": completion})


def prompt_completion(row: dict[str, Any]) -> Row:
    """`prompt` with `completion`, `response` or `chosen`: texts, or lists of turns as TRL's."""
    prompt, reply = turns_in(row.get("prompt")), turns_in(first(row, names.COMPLETION))
    if not isinstance(prompt, list) and not isinstance(reply, list):
        return row_of(row, {"prompt": text(row, names.PROMPT), "completion": reply})
    asked = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    if isinstance(reply, list) and any(is_asked(turn) for turn in reply):
        asked = []  # UltraFeedback's form: the reply begins with what was asked
    replies = [{"role": "assistant", "content": reply}] if isinstance(reply, str) else reply
    chat = read_chat([*asked, *(replies or [])], first(row, names.SYSTEM))
    return row_of(row, {}, chat, ("prompt", "completion"))


def question_answer(row: dict[str, Any]) -> Row:
    """A question with its answer, SQuAD's with its context, ARC's and MMLU's with the choices.

    An answer that is a letter, an index or a text of the choices stays as it stands, and so do
    several right answers where there are no choices.
    """
    fields = {"question": text(row, names.QUESTION), "context": first(row, names.CONTEXT)}
    answer = first(row, names.ANSWER)
    if choices := choices_of(row):
        fields["choices"], fields["choice_letters"] = choices
        answer = first(row, names.LABEL) if answer is None else answer
    if isinstance(answer, dict):
        answer = first(answer, ("text", "value"))
    if isinstance(answer, list) and (len(answer) < 2 or "choices" in fields):
        answer = answer[0] if answer else None
    return row_of(row, {**fields, "answer": answer})


def nli(row: dict[str, Any]) -> Row:
    """Two texts and what the first says about the second; a label that is a number stays one."""
    fields = {"premise": text(row, names.PREMISE), "hypothesis": text(row, names.HYPOTHESIS)}
    return row_of(row, {**fields, "label": first(row, names.LABEL)})


def summarization(row: dict[str, Any]) -> Row:
    """A text with its summary: `article`, `document` or `dialogue`, `highlights` or `abstract`."""
    article = text(row, names.ARTICLE)
    return row_of(row, {"article": article, "summary": first(row, names.SUMMARY)})


def text_label(row: dict[str, Any]) -> Row:
    """A text with its class; a label that is a number stays one."""
    return row_of(row, {"text": text(row, names.TEXT), "label": first(row, names.LABEL)})


def columns(row: dict[str, Any]) -> Row:
    """Any columns, as they are: what a task type of one's own reads where no other form fits."""
    return row_of(row, {})
