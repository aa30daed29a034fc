"""What a chat template is given: tool calls as objects, whatever form the row had them in."""

import pytest
from transformers import AutoTokenizer

from retort.data.encoding import arguments_of, render_one
from retort.data.formats import read_row
from tests.support.tiny import save_model

TEMPLATES = {
    "as JSON": (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.arguments | tojson }}{% endfor %};{% endfor %}"
    ),
    "one by one": (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{% for k, v in c.function.arguments | items %}{{ k }}={{ v }} {% endfor %}{% endfor %};"
        "{% endfor %}"
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(save_model(tmp_path_factory.mktemp("m"), hidden=32))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("arguments", ['{"n": 7}', {"n": 7}])
def test_a_template_gets_the_arguments_of_a_call_as_an_object(tokenizer, template, arguments):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    turns = [
        {"role": "user", "content": "2"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "3"},
        {"role": "user", "content": "4"},
    ]
    chat = read_row({"messages": turns}, "auto", {})[1].messages
    tokenizer.chat_template = TEMPLATES[template]
    plain = TEMPLATES[template].replace("c.function.arguments", "{'n': 7}")
    ids = render_one(tokenizer, chat)
    tokenizer.chat_template = plain
    assert ids == render_one(tokenizer, chat)
    assert chat[1]["tool_calls"] == [call]


def test_arguments_that_are_no_object_are_none():
    assert arguments_of(None) == arguments_of("") == arguments_of("{}") == {}
    for other in ("[1]", "{x", "7", 7, [1]):
        assert arguments_of(other) is None
