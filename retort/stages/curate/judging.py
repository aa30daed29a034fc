"""The further models that curation asks: the judge and the second teacher."""

from dataclasses import replace
from typing import Any

import orjson

from retort.data import reasoning
from retort.data.filters.candidate import Candidate
from retort.engines import Request
from retort.stages.judge import consult, judging_chat, score_of
from retort.stages.stage import Stage
from retort.stages.teacher_requests import instruction_of, with_instruction


def judge(stage: Stage, items: list[Candidate]) -> tuple[list[Candidate], int]:
    """Returns the candidates with the judge's scores, None where it gave none, and how many it was
    not reached for."""
    model = stage.spec.curate.judge
    assert model, "the spec refuses the filter judged without a judge"
    requests = [
        Request(
            i.response.id,
            judging_chat(model.rubric, i.response.messages or i.example.messages, _as_text(i)),
        )
        for i in items
    ]
    found = consult(stage, model, requests, "judge")
    scores = {name: score_of(text) for name, text in found.texts.items()}
    scored = [_replaced(item, score=scores.get(item.response.id)) for item in items]
    return scored, found.num_unreached


def second_teacher(stage: Stage, items: list[Candidate]) -> tuple[list[Candidate], int]:
    """Returns the candidates with the second teacher's answers to the same chats, and how many it
    was not reached for."""
    model = stage.spec.curate.second_teacher
    assert model, "the spec refuses the filter teachers_agree without a second teacher"
    instruction = instruction_of(stage.spec)
    requests = [
        Request(
            item.response.id,
            with_instruction(item.response.messages or item.example.messages, instruction),
            item.example.tools,
        )
        for item in items
    ]
    found = consult(stage, model, requests, "second_teacher")
    answers = {
        name: reasoning.split(text)[1] if instruction or "</think>" in text else text
        for name, text in found.texts.items()
    }
    answered = [_replaced(item, second=answers.get(item.response.id)) for item in items]
    return answered, found.num_unreached


def _as_text(item: Candidate) -> str:
    """Returns a response as the judge reads it, with its tool calls."""
    calls = item.response.tool_calls
    return item.text + (f"\n{orjson.dumps(calls).decode()}" if calls else "")


def _replaced(item: Candidate, **facts: Any) -> Candidate:
    """Returns a candidate with more facts, and puts it in the old one's place among its peers."""
    new = replace(item, **facts)
    item.peers[item.peers.index(item)] = new
    return new
