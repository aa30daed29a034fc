"""A round of on-policy learning, and its controls: what differs from a plain training.

A round begins with the student and the optimizer of the round before, and is not kept where it made
held-out answers worse. A control goes on from stored rows for as many steps as the rounds took, or
for as many as fit into their seconds.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from retort.records import JsonObject
from retort.spec import rounds
from retort.spec.job import OFFLINE_COST
from retort.stages.stage import Stage
from retort.stages.train import checkpoint, curve, round_rows
from retort.stages.train.round_rows import Answers
from retort.stages.train.student import save_student
from retort.stages.train.training_rows import TrainingData

STATE, PHASES = "state.safetensors", "phases.json"
# The steps over which the step size rises where no optimizer state is there to go on with.
MOST_WARMUP = 16
Factor = Callable[[int, int], float]
Record = dict[str, float]


class Trainable(Protocol):
    """What this file needs of `loop.Trainer`."""

    learner: Any
    optimizer: Any
    factor: Factor
    most_steps: int | None
    num_steps: int

    def run(self, data: TrainingData) -> JsonObject:
        """Trains to the end; returns the last losses."""

    def validate(self, data: TrainingData) -> dict[str, float]:
        """Returns the losses of the validation items."""


@dataclass
class Round:
    """One round under way. `earlier` are the records of the rounds before it."""

    stage: Stage
    base: Path
    data: TrainingData
    answers: Answers
    earlier: list[Record]

    @property
    def number(self) -> int:
        """The round's, counted from 1."""
        return rounds.number_of(self.stage.inputs)

    def run(self, trainer: Trainable) -> JsonObject:
        """Learns from the round; returns the facts of the training. Does nothing where the answers
        say that the rounds end."""
        if reason := self._ends():
            self.stage.report.note(f"warning: the rounds end here: {reason}")
            ended = {"kept": False, "ended": reason, "warnings": [reason]}
            return {**ended, **self._record({}, {}), **self._counts()}
        if (state := self._state()) is not None:
            checkpoint.restore(state, trainer.learner, trainer.optimizer)
        trainer.factor = self._factor(state is not None)
        before = trainer.validate(self.data)
        last = trainer.run(self.data)
        was, now = before.get("validation_loss"), last.get("validation_loss")
        kept = was is None or now is None or now <= was * (1 + self._knobs.max_rise)
        if not kept:
            self.stage.report.note(
                f"warning: round {self.number} is not kept: the loss on held-out answers rose from "
                f"{was:.4g} to {now:.4g}"
            )
        record = self._record(before, last, trainer.num_steps, kept)
        for each in record["rounds"]:  # MLflow's steps are the rounds
            values = {f"rounds.{key}": value for key, value in each.items() if key != "round"}
            self.stage.report.metrics(values, round(each["round"]))
        self.stage.report.note(_outcome(record["rounds"][-1]))
        return {**last, "kept": kept, **record, **self._counts()}

    def save(
        self,
        trainer: Trainable,
        facts: JsonObject,
        weights: dict[str, Tensor] | None,
        is_first: bool,
    ) -> None:
        """Writes the student and its state: those of the round before where this one is not kept.

        All processes must call it; the first one writes.
        """
        state = checkpoint.packed(trainer.learner, trainer.optimizer) if self._carries else b""
        if not is_first:
            return
        out, before = self.stage.out, self.stage.input(self._before)
        own = out.read_json(curve.NAME) if out.has(curve.NAME) else []
        phases = before.read_json(PHASES if before.has(PHASES) else curve.NAME)
        shift = phases[-1]["step"] if phases else 0
        shifted = [{**record, "step": record["step"] + shift} for record in own]
        out.write_json(PHASES, [*phases, *shifted])
        if facts["kept"]:
            if self._carries:
                out.write(STATE, state)
            save_student(self.stage, trainer.learner, self.base, weights)
            return
        stays = (
            self.stage.input(rounds.students(self.stage.inputs)[0]) if "ended" in facts else before
        )
        with stays.local_copy("student") as folder:
            out.put_tree(folder, "student")
        if stays.has(STATE):
            out.write(STATE, stays.read(STATE))

    @property
    def _knobs(self) -> Any:
        return self.stage.spec.train.on_policy

    @property
    def _before(self) -> str:
        name = rounds.before(self.stage.inputs)
        assert name
        return name

    @property
    def _carries(self) -> bool:
        """Whether the next round goes on with this one's optimizer. Adapters are merged after each
        round, and begin anew."""
        return self.stage.spec.train.lora is None

    def _state(self) -> bytes | None:
        before = self.stage.input(self._before)
        return before.read(STATE) if self._carries and before.has(STATE) else None

    def _factor(self, goes_on: bool) -> Factor:
        first, last = self._knobs.learning_rates(self.number)

        def factor(step: int, num_steps: int) -> float:
            warmup = 0 if goes_on else min(MOST_WARMUP, num_steps // 2)
            rise = min(1.0, (step + 1) / (warmup + 1))
            return float(rise * (first + (last - first) * step / num_steps))

        return factor

    def _counts(self) -> dict[str, int]:
        """Returns the counts of the stored rows that were learned from before the rounds."""
        facts = self.stage.facts(self._before)
        return {name: facts[name] for name in ("num_train", "num_validation")}

    def _ends(self) -> str | None:
        """Returns why the rounds end; None where they go on."""
        own, knobs = self.answers, self._knobs
        # Rounds of short answers, before they have their whole length, are no measure for others.
        whole = [record for record in self.earlier if record["round"] > knobs.grow]
        first = whole[0] if whole else {**asdict(own)}
        is_short = self.number <= knobs.grow
        least = max(first["divergence"], 1e-3)
        for name, value, most in (
            ("max_length_ratio", own.length / max(first["length"], 1.0), knobs.max_length_ratio),
            ("max_truncated", own.truncated, knobs.max_truncated),
            ("max_repeated", own.repeated, knobs.max_repeated),
            ("max_divergence", own.divergence / least, knobs.max_divergence),
        ):
            if value > most and not (is_short and name == "max_truncated"):
                return (
                    f"{SAID[name]} in round {self.number}: {value:.3g} "
                    f"(train.on_policy.{name}: {most:g}); the student is the one before that"
                )
        return None

    def _record(
        self,
        before: dict[str, float],
        last: JsonObject,
        num_steps: int = 0,
        kept: bool = False,
    ) -> JsonObject:
        """Returns the records of the rounds so far, this one's last."""
        steps = self.earlier[-1]["last_step"] if self.earlier else 0
        record: Record = {
            "round": float(self.number),
            **asdict(self.answers),
            "num_steps": float(num_steps),
            "last_step": float(steps + num_steps),
            "kept": float(kept),
        }
        for name, found in (("loss_before", before), ("loss_after", last)):
            if (loss := found.get("validation_loss")) is not None:
                record[name] = loss
        return {"rounds": [*self.earlier, record]}


SAID = {
    "max_length_ratio": "the student's answers became longer",
    "max_truncated": "too many of the student's answers are cut off",
    "max_repeated": "too many of the student's answers repeat themselves",
    "max_divergence": "the student's answers went away from the teacher",
}


def open_round(stage: Stage, base: Path, end_ids: list[int]) -> Round | None:
    """Returns the round that a stage is; None for every other training."""
    is_scored = any(name.startswith(rounds.SCORES) for name in stage.inputs)
    if not is_scored or "train" in stage.inputs:  # a control knows of all rounds
        return None
    data, answers = round_rows.build(stage, base, end_ids)
    name = rounds.before(stage.inputs)
    assert name
    return Round(stage, base, data, answers, stage.facts(name).get("rounds", []))


def goes_on(stage: Stage, trainer: Trainable) -> None:
    """Gives a control of the rounds its steps and its step size; does nothing for others."""
    if "train" not in stage.inputs:
        return
    facts, knobs = stage.facts("train"), stage.spec.train.on_policy
    assert knobs
    number = sum(round(record["num_steps"]) for record in facts["rounds"])
    if any(name.startswith(rounds.ROLLOUTS) for name in stage.inputs):  # offline_cost
        before = stage.input(rounds.OFFLINE).read_manifest()
        of_all = before["seconds"] / max(1, before["facts"]["num_steps"])  # of earlier versions
        each = before["facts"].get("seconds_per_step") or of_all
        parts = [n for n in stage.inputs if n == "train" or n.startswith(rounds.PARTS)]
        made = {stage.input(name).uri: stage.input(name) for name in parts}
        seconds = sum(folder.read_manifest()["seconds"] for folder in made.values())
        number = math.ceil(seconds / each)
        stage.report.note(f"{OFFLINE_COST}: {number:,} steps in the {seconds:.0f} s of the rounds")
    trainer.most_steps = max(1, number)

    def factor(step: int, num_steps: int) -> float:
        warmup = min(MOST_WARMUP, num_steps // 2)
        rise, left = min(1.0, (step + 1) / (warmup + 1)), (num_steps - step) / num_steps
        return float(rise * min(1.0, left / max(knobs.decay, 1e-9)))

    trainer.factor = factor


def _outcome(record: Record) -> str:
    """Returns in one line what a round came to."""
    losses = ""
    if "loss_after" in record:
        losses = f"; loss on held-out answers {record['loss_before']:.4g}"
        losses += f" before, {record['loss_after']:.4g} after"
    return (
        f"round {record['round']:.0f}: {record['num']:,.0f} answers of {record['length']:.0f} "
        f"tokens, {record['divergence']:.4g} nats a token from the teacher{losses}"
    )
