"""The training curve: what was recorded at which step, the best pass, and warnings."""

from retort.records import JsonObject
from retort.store import Folder

NAME = "history.json"
# What a longer training goes on from, kept in the artifact of one that ended before its last step.
PAUSED = "paused/"
# The share of the records that counts as the beginning, and as the end.
EDGE = 0.1
# A last validation loss of more than this many times the best one is clear overfitting.
OVERFITTED = 1.1

Record = dict[str, float]


class Curve:
    """The records of one run, in order; those after `step` are dropped, to be made again."""

    def __init__(self, out: Folder, step: int):
        self._out = out
        stored: list[Record] = out.read_json(NAME) if out.has(NAME) else []
        self.records = [record for record in stored if record["step"] <= step]

    def add(self, step: int, record: Record) -> None:
        """Adds what was measured at a step."""
        self.records.append({"step": step, **record})

    def write(self, before: int | None = None) -> None:
        """Writes the curve so far; or what was recorded before a step."""
        kept = [r for r in self.records if before is None or r["step"] < before]
        self._out.write_json(NAME, kept)

    @property
    def validated(self) -> list[Record]:
        """The records with a validation loss."""
        return [record for record in self.records if "validation_loss" in record]

    @property
    def best_step(self) -> int | None:
        """The step with the lowest validation loss, the first of equals; None without one."""
        best = min(self.validated, key=lambda record: record["validation_loss"], default=None)
        return None if best is None else int(best["step"])

    @property
    def num_stale(self) -> int:
        """The number of validations since the best one."""
        return sum(record["step"] > (self.best_step or 0) for record in self.validated)

    def last(self) -> JsonObject:
        """Returns the last losses, without their step."""
        return {k: v for k, v in (self.records[-1:] or [{}])[0].items() if k != "step"}

    def outcome(self) -> str:
        """Returns in one line what the run came to."""
        first, last = self.records[0], self.records[-1]
        validations = [record["validation_loss"] for record in self.validated]
        best = f"; lowest validation loss {min(validations):.4g}" if validations else ""
        losses = f"loss {first['loss']:.4g} at first, {last['loss']:.4g} at the end"
        return f"{last['step']:,} steps: {losses}{best}"

    def warnings(self) -> list[str]:
        """Returns a line on divergence and on clear overfitting, where there is any."""
        lines = []
        losses = [record["loss"] for record in self.records if "loss" in record]
        edge = max(1, round(EDGE * len(losses)))
        first, last = sum(losses[:edge]) / edge, sum(losses[-edge:]) / edge
        if len(losses) > 1 and last > first:
            lines.append(
                f"the training loss rose from {first:.4g} to {last:.4g}: the run diverged; "
                "lower train.learning_rate"
            )
        validations = [record["validation_loss"] for record in self.validated]
        if validations and validations[-1] > OVERFITTED * min(validations):
            lines.append(
                f"the validation loss was {min(validations):.4g} after step {self.best_step} and "
                f"{validations[-1]:.4g} at the end: overfitting; lower train.num_epochs or add data"
            )
        return lines
