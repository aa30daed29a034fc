"""Which chats a template refuses, as transformers itself refuses them."""

import json

import pytest
from transformers import PreTrainedTokenizerFast

from retort.data.chat_templates import refusals
from retort.records import Example
from tests.support.tiny import save_model

ALTERNATES = (
    "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('no system turn') }}{%- endif -%}"
    "{%- for m in messages -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('turns must alternate') }}{%- endif -%}{{ m.content | trim }}"
    "{%- if m.tool_calls -%}{{ m.tool_calls[0].function.arguments.items() | list }}{%- endif -%}"
    "{%- if loop.first -%}{{ strftime_now('%Y') }}{%- continue -%}{%- endif -%}{%- endfor -%}"
    "{{ tools | tojson(indent=1) if tools else bos_token }}"
)
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
CHATS = [
    [("user", "a")],
    [("system", "s"), ("user", "a")],
    [("user", "a"), ("user", "b")],
    [("user", "a"), ("assistant", "b"), ("user", "c")],
    [("user", "a"), ("user", "b"), ("user", "c")],
]


def example(number: int, chat: list[tuple[str, str]]) -> Example:
    messages = [{"role": role, "content": content} for role, content in chat]
    return Example(str(number), "train", messages)


def test_what_is_refused_is_counted_by_its_reason():
    examples = [example(number, chat) for number, chat in enumerate(CHATS)]
    assert refusals(ALTERNATES, examples) == {"no system turn": 1, "turns must alternate": 2}
    called = example(9, [("user", "a"), ("assistant", "")])
    called.messages[1]["tool_calls"] = [CALL]
    assert refusals(ALTERNATES, [called]) == {}
    assert refusals("{% generation %}x{% endgeneration %}", examples) is None


@pytest.mark.parametrize("chat", CHATS)
def test_transformers_refuses_the_same(chat, tmp_path):
    folder = save_model(tmp_path / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = ALTERNATES
    one = example(0, chat)
    expected = ""
    try:
        tokenizer.apply_chat_template(one.messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        expected = str(error)
    assert json.dumps([*refusals(ALTERNATES, [one])]) == json.dumps([expected] if expected else [])
