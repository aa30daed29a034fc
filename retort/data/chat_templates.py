"""Chats that a model's chat template refuses, found before its tokenizer is loaded.

Templates may raise an error, such as for a system turn or two turns of a user. The environment is
that of transformers' `apply_chat_template`, whose import takes a second.
"""

import json
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from retort.data.encoding import for_template
from retort.records import Example


def refusals(template: str, examples: Iterable[Example]) -> Counter[str] | None:
    """Returns how many chats a template refuses, by its message; None for a template with tags that
    only transformers knows."""
    try:
        compiled = _environment().from_string(template)
    except TemplateSyntaxError:
        return None
    refused: Counter[str] = Counter()
    for example in examples:
        try:
            compiled.render(
                messages=for_template(example.messages),
                tools=example.tools,
                add_generation_prompt=True,
                bos_token="<s>",
                eos_token="</s>",
            )
        except Exception as error:  # a template can fail in any way, as it will for the model
            refused[str(error) or type(error).__name__] += 1
    return refused


def _environment() -> ImmutableSandboxedEnvironment:
    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _as_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda text: datetime.now().strftime(text)
    return environment


def _as_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
