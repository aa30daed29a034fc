"""The judge rates every answer of every model, and is not told which model wrote it.

Equal answers to the same example are one request, so that two models with the same words have the
same rating.
"""

import orjson

from retort.engines import Request
from retort.records import Response, content_id
from retort.stages.evaluate.compared_models import asked_examples, read_answers, roles_of
from retort.stages.judge import consult, judging_chat, score_of
from retort.stages.stage import Stage

Scores = dict[str, list[float]]  # by example's id: the score, and 1


def judged(stage: Stage) -> tuple[dict[str, Scores], int]:
    """Returns the judge's scores by role and example, of answers that are whole, and for how many
    it was not reached; nothing without a judge. An answer without a score in the judge's text has
    none.

    The judge is loaded after the models, in a process of its own, and rates only what is not in its
    ledger yet.
    """
    judge = stage.spec.evaluate.judge
    if judge is None:
        return {}, 0
    examples = {e.id: e for e in asked_examples(stage)}
    keys: dict[str, dict[str, str]] = {}
    requests: dict[str, Request] = {}
    for role in roles_of(stage):
        whole = {k: r for k, r in read_answers(stage, role).items() if r.state == "accepted"}
        keys[role] = {key: content_id([key, _judged_text(r)]) for key, r in whole.items()}
        for key, response in whole.items():
            name = keys[role][key]
            chat = judging_chat(judge.rubric, examples[key].messages, _judged_text(response))
            requests[name] = Request(name, chat)
    found = consult(stage, judge, [requests[name] for name in sorted(requests)], "judge")
    scores = {name: score_of(text) for name, text in found.texts.items()}
    by_role: dict[str, Scores] = {}
    for role, names in keys.items():
        rated = {key: scores.get(name) for key, name in names.items()}
        by_role[role] = {key: [score, 1.0] for key, score in rated.items() if score is not None}
    return by_role, found.num_unreached


def _judged_text(response: Response) -> str:
    """Returns an answer as a judge reads it, with its tool calls."""
    calls = response.tool_calls
    return response.text + (f"\n{orjson.dumps(calls).decode()}" if calls else "")
