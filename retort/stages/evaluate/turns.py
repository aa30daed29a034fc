"""The models take turns at being measured, round after round, each in a process of its own.

A model's process stays open for the next round while the machine has memory for as many more as are
still to come. Otherwise each turn opens a new one, as on a GPU, at an endpoint, and on a cluster,
where others may wait for its room.
"""

import queue
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from retort import processes
from retort.events import Event, Reporter
from retort.processes import machine
from retort.records import JsonObject
from retort.stages.engine_settings import measured_runtime
from retort.stages.evaluate import measure
from retort.stages.evaluate.compared_models import engine_of, model_of, roles_of, rounds_of
from retort.stages.stage import Stage

LISTEN_SECONDS = 0.1
# A process is kept open where this many times its memory is free for each that is still to come.
SPARE = 1.25


def take_turns(stage: Stage) -> None:
    """Measures every model in every round, the teacher first, because the bound follows from it.

    What an earlier run measured is not measured again.
    """
    roles, rounds = roles_of(stage), range(1, rounds_of(stage) + 1)
    turns = [(number, role) for number in rounds for role in roles]
    open_models: dict[str, OpenModel] = {}
    with ExitStack() as stack:
        for index, (number, role) in enumerate(turns):
            if stage.out.has(measure.file_of(role, number)):
                stage.report.note(f"continuing: {role} is already measured in round {number}")
                continue
            if role not in open_models:
                open_models[role] = stack.enter_context(OpenModel(stage, role))
            measures = open_models[role].measure(number, stage.report.part(role, index, len(turns)))
            if measures.get("num_changed"):
                stage.report.note(
                    f"warning: {role} gave {measures['num_changed']:,} other answers in round "
                    f"{number} than in the first, whose answers are scored"
                )
            is_last = number == rounds[-1] or stage.spec.cluster.ray is not None
            if is_last or not _has_room(measures, len(roles) - len(open_models)):
                open_models.pop(role).close()


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
        runtime = measured_runtime(self._stage.spec, engine_of(self._stage, self._role))
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
