"""The graders of OpenAI's Evals score every answer of every model.

A judge is asked as `evaluate.judge` is, from its ledger and within its budget; code of graders runs
in a process of its own. Equal answers to the same example are one request and one call.
"""

import math
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NoReturn

from retort import processes
from retort.engines import Request
from retort.errors import StageError
from retort.events import Reporter
from retort.metrics import Statistics, graders
from retort.metrics.graders import Grader, ModelGrader, Python
from retort.metrics.graders.grading import Case, Outside, call_of, chat_of, grade
from retort.metrics.graders.templates import MissingError
from retort.records import JsonObject, Message, content_id
from retort.stages.evaluate.compared_models import (
    asked_examples,
    is_answered,
    read_answers,
    roles_of,
)
from retort.stages.judge import consult
from retort.stages.stage import Stage

Cases = dict[str, dict[str, Case]]  # by role and example's id
# As long as OpenAI lets a grader work.
SECONDS_OF_A_CALL = 120
# What the process of graders' code gets of the environment: what Python needs, and no keys. Note:
# this keeps keys from leaking by accident; the code has the user's rights and could look elsewhere.
VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH")


class TooLongError(BaseException):
    """The code of a grader took longer than it may; `except Exception` does not hold it up."""


class EndedError(BaseException):
    """The process of graders' code was told to end."""


def graded(stage: Stage) -> tuple[dict[str, Statistics], int]:
    """Returns the graders' statistics by role, and for how many answers the judge was not reached;
    nothing without graders. Raises as `consult` and `processes.run` do."""
    knobs = stage.spec.evaluate.graders
    if knobs is None:
        return {}, 0
    found, examples = graders.read(knobs.file), {e.id: e for e in asked_examples(stage)}
    cases: Cases = {
        role: {
            key: Case.of(examples[key], response)
            for key, response in read_answers(stage, role).items()
            if is_answered(response)
        }
        for role in roles_of(stage)
    }
    texts, num_unreached = _judged(stage, found, cases)
    outside: Outside = {**texts, **_called(stage, found, cases)}
    by_role = {role: _statistics(found, own, outside) for role, own in cases.items()}
    return by_role, num_unreached


def deciding_first(stage: Stage, statistics: dict[str, Statistics]) -> dict[str, Statistics]:
    """Returns the statistics with the grader first that decides, where the spec names one.

    Raises `StageError` where it scored no answer of a model.
    """
    knobs = stage.spec.evaluate.graders
    if knobs is None or knobs.main is None:
        return statistics
    main = graders.deciding(graders.read(knobs.file), knobs.main)
    if without := [role for role, values in statistics.items() if main not in values]:
        raise StageError(
            f"evaluate.graders.main: '{knobs.main}' scored no answer of {', '.join(without)}: its "
            "judge was not reached, or no row has what its templates name; mend that and run the "
            "same command"
        )
    return {role: {main: values[main], **values} for role, values in statistics.items()}


def _statistics(found: list[Grader], cases: dict[str, Case], outside: Outside) -> Statistics:
    """Returns the statistics of a model: scores, and who reached a threshold."""
    result: Statistics = {}
    for grader in found:
        scores = {key: grade(grader, case, outside) for key, case in cases.items()}
        known = {key: score for key, score in scores.items() if score is not None}
        result[graders.metric_of(grader)] = {key: [score, 1.0] for key, score in known.items()}
        passed, least = graders.passed_metric_of(grader), grader.pass_threshold
        if passed and least is not None:
            result[passed] = {key: [float(s >= least), 1.0] for key, s in known.items()}
    return result


def _leaf_cases(found: list[Grader], cases: Cases) -> Iterator[tuple[Grader, Case]]:
    for grader in graders.leaves(found):
        for own in cases.values():
            yield from ((grader, case) for case in own.values())


def _judged(stage: Stage, found: list[Grader], cases: Cases) -> tuple[dict[str, str], int]:
    """Returns the judge's replies by the key of their chats, and how often it was not reached."""
    knobs, chats = stage.spec.evaluate.graders, dict[str, list[Message]]()
    for grader, case in _leaf_cases(found, cases):
        if isinstance(grader, ModelGrader):
            try:
                chat = chat_of(grader, case)
            except MissingError:
                continue
            chats[content_id(chat)] = chat
    if not (knobs and knobs.judge and chats):
        return {}, 0
    requests = [Request(key, chats[key]) for key in sorted(chats)]
    replies = consult(stage, knobs.judge, requests, "graders.judge")
    return replies.texts, replies.num_unreached


def _called(stage: Stage, found: list[Grader], cases: Cases) -> dict[str, float]:
    """Returns the scores of code by the key of each call."""
    calls: dict[str, JsonObject] = {}
    for grader, case in _leaf_cases(found, cases):
        if isinstance(grader, Python):
            call = call_of(grader, case)
            calls[content_id(call)] = call
    if not calls:
        return {}
    stage.report.note(f"python graders: {len(calls):,} calls in a process of their own")
    runtime = stage.spec.evaluate.runtime.model_dump(mode="json") | {"variables": VARIABLES}
    return processes.run(call_all, {"calls": calls}, stage.report, stage.log, runtime)


def call_all(calls: dict[str, JsonObject], report: Reporter) -> dict[str, float]:
    """The child's side: returns the scores of all calls, 0 for one that raises, takes too long or
    returns no finite number, as OpenAI scores it."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.signal(signal.SIGTERM, _ended)
    functions = {
        source: _function(source) for source in {call["source"] for call in calls.values()}
    }
    return {
        key: _score(functions[call["source"]], call["sample"], call["item"])
        for key, call in calls.items()
    }


def _function(source: str) -> Callable[[Any, Any], Any] | None:
    """Returns the function `grade` of a grader's source; None where it cannot be loaded."""
    names: dict[str, Any] = {"__name__": "grader"}
    with _bounded("cannot be loaded"):
        exec(compile(source, "grader", "exec"), names)
        function: Callable[[Any, Any], Any] = names["grade"]
        return function
    return None


def _score(function: Callable[[Any, Any], Any] | None, sample: Any, item: Any) -> float:
    value = 0.0
    if function:
        with _bounded("failed"):
            value = float(function(deepcopy(sample), deepcopy(item)))
    return value if math.isfinite(value) else 0.0


@contextmanager
def _bounded(what: str) -> Iterator[None]:
    """Ends a grader's code that takes too long, and prints whatever it raises."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS_OF_A_CALL)
    try:
        yield
    except EndedError:
        raise
    except BaseException as error:
        print(f"a python grader {what}:", *traceback.format_exception_only(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _too_long(number: int, frame: object) -> NoReturn:
    raise TooLongError


def _ended(number: int, frame: object) -> NoReturn:
    raise EndedError
