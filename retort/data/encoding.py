"""From chats to token ids and labels. Labels are shifted here and nowhere else."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from retort.errors import DataError
from retort.records import JsonObject, Message

IGNORED = -100


@dataclass(frozen=True)
class EncodedRow:
    """One training sequence. `labels[t]` is the token that position t must predict.

    `first` is the first supervised position: labels[first:] are the response's tokens, in order.
    `choices`, for a closed set of answers, is the position among them that decides which label it
    is, and each label's token id there.
    """

    id: str
    input_ids: list[int]
    labels: list[int]
    first: int
    choices: tuple[int, list[int]] | None = None


def load_tokenizer(model: str) -> Any:
    """Returns a model's tokenizer (transformers)."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def end_ids(model: str, tokenizer: Any) -> list[int]:
    """Returns the ids that end an answer of a model, by its generation config and tokenizer."""
    configured, folder = None, Path(model)
    if folder.is_dir():  # transformers' own reader imports torch
        with contextlib.suppress(OSError):
            text = (folder / "generation_config.json").read_bytes()
            configured = orjson.loads(text).get("eos_token_id")
    else:
        from transformers import GenerationConfig

        with contextlib.suppress(OSError):
            configured = GenerationConfig.from_pretrained(model).eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(i for i in [*ids, tokenizer.eos_token_id] if i is not None))


def render(
    tokenizer: Any, chats: list[list[Message]], tools: list[Any] | None = None
) -> list[list[int]]:
    """Returns the token ids of each chat, up to the start of the assistant's turn.

    `tools` are the tool definitions of each chat, or None if no chat has any. The template writes
    every special token and the tokenizer adds none, so there is at most one BOS.
    """
    if not chats:
        return []
    texts = render_texts(tokenizer, chats, tools)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [list(row) for row in ids]


def render_texts(
    tokenizer: Any, chats: list[list[Message]], tools: list[Any] | None = None
) -> list[str]:
    """Returns the text of each chat, up to the start of the assistant's turn."""
    return [
        tokenizer.apply_chat_template(
            for_template(chat), tools=chat_tools, tokenize=False, add_generation_prompt=True
        )
        for chat, chat_tools in zip(chats, tools or [None] * len(chats), strict=True)
    ]


def render_each(
    tokenizer: Any, chats: list[list[Message]], tools: list[Any]
) -> list[list[int] | str]:
    """Returns the token ids of each chat as `render` does, or why a chat cannot be rendered."""
    try:
        return [*render(tokenizer, chats, tools)]
    except Exception:  # templates fail in many ways; rendering one by one shows which chat is bad
        rendered: list[list[int] | str] = []
        for chat, chat_tools in zip(chats, tools, strict=True):
            try:
                rendered.append(render_one(tokenizer, chat, chat_tools))
            except Exception as error:
                rendered.append(f"chat template: {type(error).__name__}: {error}")
        return rendered


def for_template(chat: list[Message]) -> list[Message]:
    """Returns a chat with the arguments of tool calls as objects.

    OpenAI's API has them as a text of JSON; chat templates write that text again as JSON, or fail.
    """
    return [
        {**turn, "tool_calls": [_with_object(call) for call in turn["tool_calls"]]}
        if turn.get("tool_calls")
        else turn
        for turn in chat
    ]


def _with_object(call: JsonObject) -> JsonObject:
    function = call.get("function")
    if not isinstance(function, dict):
        return call
    arguments = arguments_of(function.get("arguments"))
    return call if arguments is None else {**call, "function": {**function, "arguments": arguments}}


def arguments_of(arguments: Any) -> JsonObject | None:
    """Returns the arguments of a tool call as an object, also if they are its JSON; else None."""
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments)
        except orjson.JSONDecodeError:
            return None
    return arguments if isinstance(arguments, dict) else None


def render_one(tokenizer: Any, chat: list[Message], tools: Any = None) -> list[int]:
    """Returns the token ids of one chat, up to the start of the assistant's turn."""
    return render(tokenizer, [chat], [tools])[0]


def response_ids(tokenizer: Any, response: str | list[int]) -> list[int]:
    """Returns the ids of an existing answer; a text gets the end token at its end."""
    if not isinstance(response, str):
        return list(response)
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    return [*ids, end] if end is not None else list(ids)


def encode(example_id: str, prompt_ids: list[int], response_ids: list[int]) -> EncodedRow:
    """Returns the training sequence of a prompt and the ids that the teacher generated.

    Raises `DataError` when either is empty.
    """
    if not prompt_ids or not response_ids:
        raise DataError(f"example {example_id}: an empty prompt or response cannot be encoded")
    ids = prompt_ids + response_ids
    first = len(prompt_ids) - 1
    return EncodedRow(example_id, ids[:-1], [IGNORED] * first + response_ids, first)


def with_end(token_ids: list[int], end_ids: list[int]) -> list[int]:
    """Returns a finished response's ids with exactly one end token.

    Some engines return the end token that they stopped at, some do not. Raises `DataError` for a
    student without an end token: it would never stop.
    """
    if not end_ids:
        raise DataError("the student has no end token; name one in its generation_config.json")
    body = list(token_ids)
    while body and body[-1] in end_ids:
        body.pop()
    end = token_ids[len(body)] if len(body) < len(token_ids) else end_ids[0]
    return [*body, end]
