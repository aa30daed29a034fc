"""The judge: rates every answer of every model, and does not learn which model wrote it.

Equal answers to the same example are one request, so that two models are never rated apart for
the same words.
"""

import orjson

from retort.engines import Request
from retort.records import Response, content_id
from retort.stages.evaluate.compared_models import asked_examples, read_answers, roles_of
from retort.stages.judge import consult, judging_chat, score_of
from retort.stages.stage import Stage

Scores = dict[str, list[float]]  # by example's id: the score, and 1


def judged(stage: Stage) -> dict[str, Scores]:
    """Returns the judge's scores by role and example, of answers that are whole; nothing without a
    judge. An answer that it gave no score for has none.

    It is loaded after the models, in a process of its own, and only for what its ledger lacks.
    """
    who = stage.spec.evaluate.judge
    if who is None:
        return {}
    examples = {e.id: e for e in asked_examples(stage)}
    keys: dict[str, dict[str, str]] = {}
    requests: dict[str, Request] = {}
    for role in roles_of(stage):
        whole = {k: r for k, r in read_answers(stage, role).items() if r.state == "accepted"}
        keys[role] = {key: content_id([key, _given(r)]) for key, r in whole.items()}
        for key, response in whole.items():
            name = keys[role][key]
            chat = judging_chat(who.rubric, examples[key].messages, _given(response))
            requests[name] = Request(name, chat)
    said = consult(stage, who, [requests[name] for name in sorted(requests)], "judge")
    scores = {name: score_of(text) for name, text in said.items()}
    found: dict[str, Scores] = {}
    for role, names in keys.items():
        rated = {key: scores.get(name) for key, name in names.items()}
        found[role] = {key: [score, 1.0] for key, score in rated.items() if score is not None}
    return found


def _given(response: Response) -> str:
    """Returns an answer as a judge reads it, with the tools it calls."""
    calls = response.tool_calls
    return response.text + (f"\n{orjson.dumps(calls).decode()}" if calls else "")
