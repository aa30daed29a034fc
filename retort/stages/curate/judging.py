"""What curation asks of further models: a judge's score, a second teacher's answer."""

from dataclasses import replace
from typing import Any

import orjson

from retort.data import reasoning
from retort.data.filters.candidate import Candidate
from retort.engines import Request
from retort.stages.judge import consult, judging_chat, score_of
from retort.stages.stage import Stage
from retort.stages.teacher_requests import instruction_of, with_instruction


def judge(stage: Stage, items: list[Candidate]) -> list[Candidate]:
    """Returns the items with the judge's scores; without one where it gave none."""
    who = stage.spec.curate.judge
    assert who, "the spec refuses the filter judged without a judge"
    requests = [
        Request(
            i.response.id,
            judging_chat(who.rubric, i.response.messages or i.example.messages, _given(i)),
        )
        for i in items
    ]
    said = consult(stage, who, requests, "judge")
    scores = {name: score_of(text) for name, text in said.items()}
    return [_told(item, score=scores.get(item.response.id)) for item in items]


def second_teacher(stage: Stage, items: list[Candidate]) -> list[Candidate]:
    """Returns the items with what the second teacher answers to the very same chats."""
    who = stage.spec.curate.second_teacher
    assert who, "the spec refuses the filter teachers_agree without a second teacher"
    instruction = instruction_of(stage.spec)
    requests = [
        Request(
            item.response.id,
            with_instruction(item.response.messages or item.example.messages, instruction),
            item.example.tools,
        )
        for item in items
    ]
    said = consult(stage, who, requests, "second_teacher")
    answers = {
        name: reasoning.split(text)[1] if instruction or "</think>" in text else text
        for name, text in said.items()
    }
    return [_told(item, second=answers.get(item.response.id)) for item in items]


def _given(item: Candidate) -> str:
    """Returns a response as a judge reads it, with the tools it calls."""
    calls = item.response.tool_calls
    return item.text + (f"\n{orjson.dumps(calls).decode()}" if calls else "")


def _told(item: Candidate, **facts: Any) -> Candidate:
    """Returns an item with more facts, in its old place among its peers."""
    told = replace(item, **facts)
    item.peers[item.peers.index(item)] = told
    return told
