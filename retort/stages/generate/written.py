"""What another model wrote and this teacher scores; which prompts an on-policy round asks."""

import numpy as np

from retort.errors import StageError
from retort.records import Response
from retort.spec import JobSpec, capture_of, rounds
from retort.stages.engine_settings import engine_of
from retort.stages.stage import Stage, read_decisions, read_responses, stream_examples
from retort.stages.teacher_requests import Written
from retort.store import model_folder


def written_answers(stage: Stage) -> Written | None:
    """Returns the answers that are scored: the student's in a round, the first teacher's where
    several are fused; None where the teacher writes or rates the rows' own answers.

    Raises `StageError` where an example has several answers of a teacher.
    """
    if of_round := [name for name in stage.inputs if name.startswith(rounds.ROLLOUTS)]:
        return _of_student(stage, read_responses(stage.input(of_round[0])))
    route = stage.spec.generate.route
    others = [capture_of(name) for name in route.order] if route and route.by == "all" else []
    if not (writers := [name for name in others if name in stage.inputs]):
        return None
    responses = read_responses(stage.input(writers[0]))
    if any(response.turn or response.sample for response in responses):
        raise StageError(
            "generate.route: all fuses the signals of one answer to each example; set "
            "generate.turns: last"
        )
    return {r.example_id: {0: r.token_ids} for r in responses if r.token_ids}


def _of_student(stage: Stage, responses: list[Response]) -> Written:
    """Returns the student's answers: its own ids where the teacher has its tokens, else texts."""
    gives_ids = not engine_of(stage.spec).REMOTE and _are_alike(stage.spec)
    found: Written = {}
    for response in responses:
        if answer := response.token_ids if gives_ids else response.text:
            found.setdefault(response.example_id, {})[response.sample] = answer
    return found


def _are_alike(spec: JobSpec) -> bool:
    """Whether teacher and student have the same tokens."""
    models = ((spec.base, "train.student"), (spec.generate.teacher, "generate.teacher"))
    own, theirs = (
        model_folder.token_map(model_folder.locate(model, knob))[0] for model, knob in models
    )
    return own == theirs


def asked_in_round(stage: Stage) -> frozenset[str] | None:
    """Returns the examples that a round asks the student; None where this is none.

    Training examples come in turns, so that each is asked once before any is asked again; those
    that it is judged by are always the same. All have a response that curation kept.
    """
    own = stage.spec.train.on_policy
    number = rounds.number_of(stage.inputs)
    if own is None or not number or "curate" not in stage.inputs:
        return None
    decisions = read_decisions(stage.input("curate"))
    kept = {r.example_id for r in read_responses(stage.input("generate")) if decisions[r.id].kept}
    prepared, seed = stage.input("prepare"), stage.spec.train.seed
    train = [e.id for e in stream_examples(prepared, "train") if e.id in kept]
    held_out = [e.id for e in stream_examples(prepared, "validation") if e.id in kept]
    chosen = [train[index] for index in turns(len(train), own.prompts, number, seed)]
    judged = np.random.default_rng([seed, len(held_out)]).permutation(len(held_out))
    return frozenset([*chosen, *(held_out[index] for index in judged[: own.held_out])])


def turns(total: int, each: int, number: int, seed: int) -> list[int]:
    """Returns which of `total` examples a round asks, counted from 1, `each` a round: the next ones
    of a shuffled order that begins anew, shuffled again, when it is through.

    What a round took from the end of one order comes last in the next, so that none comes twice.
    """
    each = min(each, total)
    start, end, found = (number - 1) * each, number * each, list[int]()
    last: list[int] = []
    for turn in range(-(-end // total) if total else 0):
        taken = {*last}
        shuffled = np.random.default_rng([seed, turn]).permutation(total).tolist()
        order = [*(index for index in shuffled if index not in taken), *last]
        at = turn * total
        found += order[max(start - at, 0) : max(end - at, 0)]
        last = order[total - (at + total) % each :]
    return found
