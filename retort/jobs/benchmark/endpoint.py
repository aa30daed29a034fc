"""A model behind an endpoint, as the harness's own class: it is asked through Retort's engines.

So keys, retries and overload are handled as everywhere in Retort. The harness wants prompts to be
text, so a chat travels through it as JSON.
"""

import json
from collections import defaultdict
from dataclasses import replace
from typing import Any

from lm_eval.api.model import LM

from retort.engines import Request, Settings, cut_at, find_engine
from retort.errors import StageError
from retort.records import JsonObject

# The harness's own default, for tasks that give none (lm_eval.models.api_models).
MAX_TOKENS = 256
# Most stop texts that OpenAI's protocol takes; the others are applied here.
MOST_STOPS = 4


class EndpointModel(LM):  # type: ignore[misc]
    """Sends the harness's requests; opens an engine for each set of sampling settings."""

    tokenizer_name = "endpoint"

    def __init__(self, engine: str, settings: Settings):
        super().__init__()
        self._engine, self._settings = find_engine(engine), settings

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns the chat as JSON, for `generate_until` to read."""
        return json.dumps(chat_history, ensure_ascii=False)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns the answers, in order. Raises `StageError` if one fails."""
        groups: dict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True)].append(index)
        texts: dict[int, str] = {}
        for arguments, indices in groups.items():
            settings = _settings(self._settings, json.loads(arguments))
            stops = settings.stop
            engine = self._engine.open_engine(replace(settings, stop=stops[:MOST_STOPS]))
            chats = [Request(str(at), json.loads(requests[at].args[0])) for at in indices]
            for answer in engine.generate(chats):
                response = self._engine.parse(answer.id, answer.raw)
                if response.state == "failed":
                    raise StageError(f"the endpoint gave no answer: {response.cause}")
                texts[int(answer.id)] = cut_at(response.text, stops)
        return [texts[at] for at in range(len(requests))]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        """Raises `StageError`: a chat endpoint gives no likelihood of existing answers."""
        raise StageError("a chat endpoint does not score given answers")

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        """Raises `StageError`, as `loglikelihood`."""
        return self.loglikelihood(requests)


def _settings(settings: Settings, arguments: JsonObject) -> Settings:
    """Returns the endpoint's settings for a task's generation_kwargs."""
    until = arguments.get("until") or []
    samples = bool(arguments.get("do_sample"))
    return replace(
        settings,
        temperature=float(arguments.get("temperature", 0.0)) if samples else 0.0,
        top_p=float(arguments.get("top_p", 1.0)),
        max_tokens=int(arguments.get("max_gen_toks") or arguments.get("max_tokens") or MAX_TOKENS),
        frequency_penalty=0.0,
        presence_penalty=0.0,
        stop=(until,) if isinstance(until, str) else tuple(until),
    )
