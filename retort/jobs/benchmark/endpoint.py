"""A model behind an endpoint, as the harness asks it: chats, by the engine that asks the teacher.

So keys, retries and pushing back are dealt with as everywhere in Retort. The surprise: the harness
wants a prompt to be text, so a chat travels through it as JSON.
"""

import json
from collections import defaultdict
from dataclasses import replace
from typing import Any

from lm_eval.api.model import LM

from retort.engines import Request, Settings, cut_at, find_engine
from retort.errors import StageError

# The harness's own, for tasks that do not say (lm_eval.models.api_models).
MAX_TOKENS = 256
# Most texts that end an answer which OpenAI's protocol takes; what is left is cut here.
MOST_STOPS = 4


class EndpointModel(LM):  # type: ignore[misc]
    """Holds how the endpoint is asked; a connection is opened for each manner of asking."""

    tokenizer_name = "endpoint"

    def __init__(self, engine: str, settings: Settings):
        super().__init__()
        self._engine, self._settings = find_engine(engine), settings

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns the chat, for `generate_until` to read."""
        return json.dumps(chat_history, ensure_ascii=False)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns the answers, in order. Raises `StageError` where there is none."""
        manners: dict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            manners[json.dumps(request.args[1], sort_keys=True)].append(index)
        found: dict[int, str] = {}
        for manner, indices in manners.items():
            settings = _settings(self._settings, json.loads(manner))
            stops = settings.stop
            engine = self._engine.open_engine(replace(settings, stop=stops[:MOST_STOPS]))
            asked = [Request(str(at), json.loads(requests[at].args[0])) for at in indices]
            for answer in engine.generate(asked):
                response = self._engine.parse(answer.id, answer.raw)
                if response.state == "failed":
                    raise StageError(f"the endpoint gave no answer: {response.cause}")
                found[int(answer.id)] = cut_at(response.text, stops)
        return [found[at] for at in range(len(requests))]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        """Raises `StageError`: a chat endpoint does not say how likely a given answer is."""
        raise StageError("a chat endpoint does not score given answers")

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        """Raises `StageError`, as `loglikelihood`."""
        return self.loglikelihood(requests)


def _settings(settings: Settings, manner: dict[str, Any]) -> Settings:
    """Returns the endpoint's settings for a task's generation_kwargs."""
    until = manner.get("until") or []
    return replace(
        settings,
        temperature=float(manner.get("temperature", 0.0)) if manner.get("do_sample") else 0.0,
        top_p=float(manner.get("top_p", 1.0)),
        max_tokens=int(manner.get("max_gen_toks") or manner.get("max_tokens") or MAX_TOKENS),
        frequency_penalty=0.0,
        presence_penalty=0.0,
        stop=(until,) if isinstance(until, str) else tuple(until),
    )
