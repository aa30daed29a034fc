"""Chat completions that list their tokens with log-probabilities, as servers write them."""

import math
from typing import Any

Listed = dict[str, Any]


def token(spelled: str | bytes, probability: float, **more: Any) -> Listed:
    """A token of a list."""
    data = spelled.encode() if isinstance(spelled, str) else spelled
    text = data.decode(errors="replace")
    return {"token": text, "bytes": list(data), "logprob": math.log(probability), **more}


def entry(first: Listed, *others: Listed, **more: Any) -> Listed:
    """A place: the sampled token, which its list begins with, and others."""
    return {**first, "top_logprobs": [first, *others], **more}


def words(*spelled: str | bytes) -> list[Listed]:
    """A place for each token, of probability 0.75; the other of its list is X, of 0.125."""
    return [entry(token(word, 0.75), token("X", 0.125)) for word in spelled]


def completion(text: str | None, content: Any, finish_reason: str = "stop", **more: Any) -> Any:
    """A chat completion."""
    message = {"role": "assistant", "content": text, **more.pop("message", {})}
    usage = {"prompt_tokens": 3, "completion_tokens": len(content or ())}
    logprobs = more.pop("logprobs", {"content": content})
    choice = {"message": message, "finish_reason": finish_reason, "logprobs": logprobs}
    return {"choices": [choice], "usage": usage, **more}
