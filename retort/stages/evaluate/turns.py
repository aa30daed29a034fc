"""The models take turns at being measured, round after round, each in a process of its own.

Where the models lie on this machine and it has the memory, all processes start together and import
their engines' libraries, most of a start, before the first is measured; each loads its model in its
first turn. It stays open for the next round while the machine has memory for as many more as are
still to come. Otherwise each turn opens a new one, as on a GPU, at an endpoint, and on a cluster,
where others may wait for its room.
"""

import queue
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from retort import processes
from retort.events import Event, Reporter
from retort.processes import machine
from retort.records import JsonObject
from retort.stages.evaluate import measure
from retort.stages.evaluate.compared_models import model_of, roles_of, rounds_of, weights_bytes
from retort.stages.stage import Stage

LISTEN_SECONDS = 0.1
# A process is kept open where this many times its memory is free for each that is still to come.
SPARE = 1.25
# What a process takes with its libraries, at most: vLLM's take less than half of it.
LIBRARIES_BYTES = 2 << 30


def take_turns(stage: Stage) -> None:
    """Measures every model in every round, the teacher first, because the bound follows from it.

    What an earlier run measured is not measured again.
    """
    roles, rounds = roles_of(stage), range(1, rounds_of(stage) + 1)
    turns = [(number, role) for number in rounds for role in roles]
    known = {r for n, r in turns if stage.out.has(measure.file_of(r, n))}
    missing = [role for role in roles if role not in known]
    open_models: dict[str, OpenModel] = {}
    loaded: set[str] = set()
    with ExitStack() as stack:
        if _may_start_together(stage, missing):
            for role in missing:
                open_models[role] = stack.enter_context(OpenModel(stage, role))
            for model in open_models.values():
                model.wait()
        for index, (number, role) in enumerate(turns):
            if stage.out.has(measure.file_of(role, number)):
                stage.report.note(f"continuing: {role} is already measured in round {number}")
                continue
            if role in open_models and role not in loaded and open_models[role].is_over():
                open_models.pop(role).close()  # it ended while it waited: it had too little time
            if role not in open_models:
                open_models[role] = stack.enter_context(OpenModel(stage, role))
            measures = open_models[role].measure(number, stage.report.part(role, index, len(turns)))
            if measures.get("num_changed"):
                stage.report.note(
                    f"warning: {role} gave {measures['num_changed']:,} other answers in round "
                    f"{number} than in the first, whose answers are scored"
                )
            loaded.add(role)
            is_last = number == rounds[-1] or stage.spec.cluster.ray is not None
            if is_last or not _has_room(measures, len(roles) - len(loaded)):
                open_models.pop(role).close()
                loaded.remove(role)


def _may_start_together(stage: Stage, roles: list[str]) -> bool:
    """Whether the models' processes may start at once: on this machine, where no model has to be
    fetched from the store, and the largest still has room beside the others' libraries."""
    if stage.spec.cluster.ray is not None or not stage.store.is_local:
        return False
    largest = max((weights_bytes(stage, role) for role in roles), default=0)
    needed = LIBRARIES_BYTES * len(roles) + 2 * SPARE * largest
    return (machine.free_memory_bytes() or 0) > needed


def _has_room(measures: JsonObject, num_to_come: int) -> bool:
    """Whether a model's process can stay open while `num_to_come` others are opened: on the CPU,
    where there is memory for as many of its size."""
    size: int | None = measures["peak_memory_bytes"]
    free_bytes = machine.free_memory_bytes()
    if measures["peak_gpu_memory_bytes"] is not None or not size or free_bytes is None:
        return False
    return free_bytes > SPARE * size * num_to_come


class OpenModel:
    """A model's process. A thread waits for what it reports; its events are passed on here, in the
    stage's own thread. Files in a scratch folder tell the process when to measure and to end."""

    def __init__(self, stage: Stage, role: str):
        self._stage, self._role, self._closing = stage, role, ExitStack()
        self._events: queue.Queue[Event] = queue.Queue()
        self._error: BaseException | None = None

    def __enter__(self) -> "OpenModel":
        scratch = self._closing.enter_context(tempfile.TemporaryDirectory(prefix="retort-"))
        model = self._closing.enter_context(model_of(self._stage, self._role))
        self._turns = Path(scratch)
        arguments = {"arguments": self._stage.arguments(), "role": self._role, "model": model}
        self._thread = threading.Thread(target=self._run, args=(arguments,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self) -> None:
        """Returns once the process could begin, or has ended, which its first turn will tell."""
        while not ((self._turns / measure.READY).exists() or self.is_over()):
            time.sleep(measure.LOOK_SECONDS)

    def is_over(self) -> bool:
        """Whether the process has ended."""
        return not self._thread.is_alive()

    def measure(self, number: int, report: Reporter) -> JsonObject:
        """Returns what the model's turn in round `number` measured, and leaves it in the artifact.

        Raises what `processes.run` raises.
        """
        (self._turns / f"{number}{measure.BEGIN}").touch()
        done = self._turns / f"{number}{measure.DONE}"
        while not done.exists() and self._thread.is_alive():
            self._pass_on(report)
        self._pass_on(report)
        if self._error is not None:
            raise self._error
        measures: JsonObject = self._stage.out.read_json(measure.file_of(self._role, number))
        return measures

    def close(self) -> None:
        """Ends the process, also in the middle of a turn, and returns once it has ended."""
        if self._thread.is_alive():
            (self._turns / measure.END).touch()
            self._thread.join()
        self._closing.close()

    def _run(self, arguments: JsonObject) -> None:
        # What a fork takes is not what the model would take in a process that began as its own.
        runtime = {**self._stage.spec.evaluate.runtime.model_dump(), "is_measured": True}
        arguments |= {"turns": str(self._turns)}
        try:
            processes.run(
                measure.measure_turns,
                arguments,
                Reporter(self._events.put),
                self._stage.log,
                runtime,
            )
        except BaseException as error:
            self._error = error

    def _pass_on(self, report: Reporter) -> None:
        """Emits the events that wait, after a moment in which one may come."""
        emit: Callable[[Event], None] = report.emit
        try:
            emit(self._events.get(timeout=LISTEN_SECONDS))
            while True:
                emit(self._events.get_nowait())
        except queue.Empty:
            return
