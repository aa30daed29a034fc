"""On-policy rounds: how the stages see a round, and what its artifacts are named.

To the code that runs them, a round's three stages are well known: a `generate` whose teacher is the
student of the round before, one in which the teacher scores these answers, and a `train` that goes
on from that student.
"""

import hashlib
from collections.abc import Collection, Iterable
from typing import Any

from retort.records import JsonObject
from retort.spec.job import ROUND_CONTROLS, JobSpec
from retort.spec.section import MAX_SEED
from retort.spec.spending import TeacherSpending
from retort.spec.train import Loss, OnPolicy

# The phase before the rounds: the training of a job without them, with which it shares an artifact.
OFFLINE = "train-offline"
ROLLOUTS, SCORES, ROUND = "rollouts-", "scores-", "round-"
# The digest of what runs the student, where that is not the teacher's engine.
ENGINE = "train.on_policy.engine"
STAGE_OF = {"rollouts": "generate", "scores": "generate", "round": "train"}
PARTS = (ROLLOUTS, SCORES, ROUND)
# Engines that ask a teacher elsewhere, and cannot run a student.
ENDPOINTS = ("openai", "anthropic")
DEFAULT = (Loss(name="forward_kl", temperature=2.0),)


def rollouts_of(number: int) -> str:
    """Returns the name of the student's answers in a round, counted from 1."""
    return f"{ROLLOUTS}{number:03d}"


def scores_of(number: int) -> str:
    """Returns the name of the teacher's scores of these answers."""
    return f"{SCORES}{number:03d}"


def student_after(spec: JobSpec, number: int) -> str:
    """Returns the name of the training after a round: `train` after the last one."""
    assert spec.train.on_policy
    if number == 0:
        return OFFLINE
    return "train" if number == spec.train.on_policy.rounds else f"{ROUND}{number:03d}"


def names_of(spec: JobSpec, number: int) -> tuple[str, str, str]:
    """Returns the names of a round's answers, scores and student."""
    return rollouts_of(number), scores_of(number), student_after(spec, number)


def before(inputs: Collection[str]) -> str | None:
    """Returns which input of a stage is the student that it begins with; None outside of rounds."""
    names = students(inputs)
    return OFFLINE if "train" in inputs and OFFLINE in names else next(reversed(names), None)


def students(inputs: Iterable[str]) -> list[str]:
    """Returns the students before and in rounds among the inputs of a stage, the oldest first."""
    names = [n for n in inputs if n == OFFLINE or n.startswith(ROUND)]
    return sorted(names, key=lambda name: "" if name == OFFLINE else name)


def number_of(inputs: Iterable[str]) -> int:
    """Returns the number of the round that a stage belongs to, counted from 1; 0 for none."""
    name = before([*inputs])
    if name is None:
        return 0
    return 1 if name == OFFLINE else int(name.removeprefix(ROUND)) + 1


def offline(spec: JobSpec) -> JobSpec:
    """Returns the job of the phase before the rounds."""
    controls = tuple(name for name in spec.train.controls if name not in ROUND_CONTROLS)
    return _with(spec, "train", on_policy=None, controls=controls)


def rollouts(spec: JobSpec, number: int) -> JobSpec:
    """Returns the job in which the student answers. It is told nothing that it would not be told
    later, and costs no money."""
    own, seed = _rounds(spec), f"{spec.train.seed}:{spec.generate.seed}:{number}"
    runtime = spec.generate.runtime
    # The weights of an engine that took new ones are compared with a plain forward pass each time.
    samples = max(1, runtime.parity_samples)
    checked = {"parity_samples": samples, "retry": (), "batch": False}
    same = own.engine == "auto" and spec.generate.engine not in ENDPOINTS
    at = {} if same else {"engine": own.engine, "endpoint": None, "api_key_env": None}
    return _with(
        spec,
        "generate",
        **_PLAIN,
        **at,
        mode="answer",
        n=own.n,
        temperature=own.temperature,
        max_tokens=own.longest(number, spec.generate.max_tokens),
        seed=int(hashlib.sha256(seed.encode()).hexdigest()[:7], 16),
        spending=TeacherSpending(pilot_rows=0),
        runtime=runtime.model_copy(update=checked),
    )


def scores(spec: JobSpec, number: int) -> JobSpec:
    """Returns the job in which the teacher scores these answers."""
    runtime = spec.generate.runtime.model_copy(update={"retry": ()})
    if number > 1:  # the first scores showed that they can be trusted
        runtime = runtime.model_copy(update={"parity_samples": 0})
    spending = spec.generate.spending.model_copy(update={"pilot_rows": 0})
    # It sees what it saw when it answered: `check` refuses what the student is not told.
    own = {"mode": "score", "n": 1, "temperature": 0.0, "runtime": runtime, "spending": spending}
    return _with(spec, "generate", **_PLAIN, **own)


def update(spec: JobSpec, number: int) -> JobSpec:
    """Returns the job in which the student learns from a round."""
    seed = (spec.train.seed + 1_000_003 * number) % (MAX_SEED + 1)
    return _with(control(spec), "train", num_epochs=_rounds(spec).passes, keep="last", seed=seed)


def control(spec: JobSpec) -> JobSpec:
    """Returns the job in which the student before the rounds goes on learning from stored rows. It
    makes all of its steps; the best pass is kept, as the job says."""
    own = _rounds(spec)
    return _with(
        spec,
        "train",
        losses=own.losses or DEFAULT,
        learning_rate=own.learning_rate or spec.train.learning_rate,
        teacher="stored",
        text="teacher",
        early_stopping=None,
    )


_PLAIN: JsonObject = {
    "turns": "last",
    "top_p": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "stop": (),
    "reasoning": "none",
    "instruction": None,
    "max_tokens_retry": None,
    "min_success_ratio": 0.0,
}


def _rounds(spec: JobSpec) -> OnPolicy:
    assert spec.train.on_policy
    return spec.train.on_policy


def _with(spec: JobSpec, section: str, **knobs: Any) -> JobSpec:
    """Returns the job with other knobs in one of its sections."""
    changed = getattr(spec, section).model_copy(update=knobs)
    return spec.model_copy(update={section: changed})
