"""Replicas of one engine as actors of a Ray cluster, which together are an engine.

The process that asks hands out requests, at most a window of them to each replica, and gets the
answers back; it alone knows what is under way, so that each request is answered once. What a lost
replica had under way is handed out again. Note: Ray starts a lost actor again by itself, on another
node where need be; here it only has to be waited for.
"""

import math
import os
import pickle
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from retort import processes
from retort.engines import Answer, Request, Settings, Timing, find_engine
from retort.errors import BY_NAME, EngineDiedError
from retort.plugins import FOLDER
from retort.processes.ray_cluster import Cluster, connect, first_line
from retort.records import JsonObject
from retort.store import InputFolder

# Requests that wait at a replica besides those that its engine works on.
SPARE_REQUESTS = 32
# Answers that finish within this time travel together; without any a replica says it is alive.
COLLECT_SECONDS, ALIVE_SECONDS = 0.5, 1.0
# Between two looks at a replica that is not there.
RETRY_SECONDS = 0.5
DEFAULT_RESTARTS = 3


def open_replicas(
    engine: str, settings: Settings, cluster: Cluster, note: Callable[[str], None]
) -> "Replicas":
    """Returns an engine of replicas, once one of them has loaded the model.

    The others take part as soon as the cluster has room for them: none waits for another, so that
    two jobs never wait for each other. A model that is not in the store is a hub id, or a folder
    that every node sees. Raises what `connect` and the engine's own `open_engine` raise,
    `EngineDiedError` where no replica stays alive.
    """
    ray = connect(cluster.address)
    devices = 1
    for knob in ("tensor_parallel_size", "pipeline_parallel_size"):
        devices *= settings.runtime.get(knob, 1)
    num_gpus = cluster.gpus(ray)
    if devices > 1:  # vLLM places its workers by itself, in a placement group of its own
        runtime = {**settings.runtime, "distributed_executor": "ray"}
        settings, num_gpus = replace(settings, runtime=runtime), 0.0
    actor = ray.remote(_Replica).options(
        num_cpus=settings.runtime.get("num_threads") or 1,
        num_gpus=num_gpus,
        resources=dict(cluster.resources),
        max_restarts=-1,
        max_task_retries=0,
    )
    folder = os.environ.get(FOLDER)
    wanted = settings.runtime.get("replicas", 1)
    most = wanted if isinstance(wanted, int) else wanted[1]
    hands = [_Hand(index, actor.remote(engine, settings, folder)) for index in range(most)]
    return Replicas(ray, settings, hands, note)


class _Replica:
    """The actor: an engine in a thread, and the requests and answers that wait between two calls.

    The engine is opened and driven by one thread; calls only pass things on.
    """

    def __init__(self, engine: str, settings: Settings, folder: str | None):
        if folder:
            os.environ[FOLDER] = folder
        self._engine, self._settings = engine, settings
        self._opened: Any = None
        self._active: set[str] = set()
        self._num_taken = 0  # the engine's thread alone counts what it has taken and not answered
        self._waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def facts(self) -> JsonObject:
        """Returns the engine's facts, once the model is loaded."""
        while self._opened is None:
            time.sleep(0.01)
        if isinstance(self._opened, BaseException):
            raise self._opened
        found: JsonObject = self._opened.facts
        return found

    def exchange(self, packed: bytes) -> bytes:
        """Takes requests; returns what is answered meanwhile, and how far the engine has come.

        Both as bytes, for Ray would pack each object of a list by itself.
        """
        requests: list[Request] = pickle.loads(packed)
        for request in requests:
            if request.id not in self._active:  # it may be here since before a lost connection
                self._active.add(request.id)
                self._waiting.put(request)
        answers: list[Answer] = []
        until = time.monotonic() + ALIVE_SECONDS
        while (left := until - time.monotonic()) > 0:
            try:
                item = self._finished.get(timeout=left)
            except queue.Empty:
                break
            if isinstance(item, BaseException):
                raise item
            if not answers:
                until = min(until, time.monotonic() + COLLECT_SECONDS)
            answers.append(item)
            if self._waiting.empty():  # the engine is about to have nothing to take
                until = 0.0
                answers += self._ready_answers()
        return pickle.dumps((answers, getattr(self._opened, "steps", -1)))

    def timed(self, request: Request) -> Timing:
        """Returns the latency of a request while there is no other."""
        found: Timing = self._opened.timed(request)
        return found

    def forget(self) -> None:
        """Drops the engine's cached keys and values."""
        self._opened.forget()

    def peaks(self) -> tuple[int, int | None]:
        """Returns the peak memory of this process, bytes: resident, and of its GPUs."""
        return processes.peaks()

    def _ready_answers(self) -> Iterator[Answer]:
        """Yields the answers that are finished by now; a failure is left for the next call."""
        while not self._finished.empty():
            item = self._finished.get()
            if isinstance(item, BaseException):
                self._finished.put(item)
                return
            yield item

    def _work(self) -> None:
        try:
            with ExitStack() as copies:
                if self._settings.home:
                    folder, prefix = self._settings.home
                    local = copies.enter_context(InputFolder(folder).local_copy(prefix))
                    self._settings = replace(self._settings, model=str(local))
                self._opened = find_engine(self._engine).open_engine(self._settings)
                answers = self._opened.score if self._settings.scores else self._opened.generate
                for answer in answers(self._requests()):
                    self._num_taken -= 1
                    self._active.discard(answer.id)
                    self._finished.put(answer)
        except BaseException as error:  # told to who asks
            if self._opened is None:
                self._opened = error
            self._finished.put(error)

    def _requests(self) -> Iterator[Request | None]:
        """Yields what waits; None while there is nothing, where the engine has work without it."""
        while True:
            try:
                request = self._waiting.get(block=self._num_taken == 0)
            except queue.Empty:
                yield None
            else:
                self._num_taken += 1
                yield request


@dataclass(eq=False)
class _Hand:
    """What is known of a replica: the call under way, when it may be called again, its requests,
    and its failures in a row."""

    index: int
    actor: Any
    call: Any = None
    call_at: float = 0.0
    is_ready: bool = False
    under_way: dict[str, Request] = field(default_factory=dict)
    num_failures: int = 0
    steps: int = -1


class Replicas:
    """An engine whose answers come from actors. `steps` grows while any of them works."""

    def __init__(
        self,
        ray: Any,
        settings: Settings,
        hands: list[_Hand],
        note: Callable[[str], None],
    ):
        self._ray, self._hands, self._note = ray, hands, note
        self._window = settings.runtime.get("max_num_seqs", 1) + SPARE_REQUESTS
        self._max_failures = settings.runtime.get("max_restarts", DEFAULT_RESTARTS)
        self._waiting: deque[Request] = deque()
        self.facts: JsonObject = {}
        self.steps = 0
        while not any(hand.is_ready for hand in self._hands):
            list(self._receive())

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields the replicas' answers as they come."""
        source, more = iter(requests), True
        while more or self._waiting or any(hand.under_way for hand in self._hands):
            more = more and self._fill(source)
            self._hand_out()
            yield from self._receive()

    def score(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields the signal of existing answers; the replicas were opened to do so."""
        return self.generate(requests)

    def timed(self, request: Request) -> Timing:
        """Returns the latency of one answer at a replica, without the way there."""
        (found,) = self._ask(lambda actor: actor.timed.remote(request), 1)
        timing: Timing = found
        return timing

    def forget(self) -> None:
        """Drops what each replica has cached."""
        self._ask(lambda actor: actor.forget.remote())

    def peaks(self) -> tuple[int, int | None]:
        """Returns the peak memory of the largest replica, bytes: resident, and of its GPUs."""
        found = self._ask(lambda actor: actor.peaks.remote())
        return max(host for host, _ in found), max((gpu for _, gpu in found if gpu), default=None)

    @property
    def shown(self) -> str:
        """How many replicas are alive, as a text."""
        return f"{len(self._alive())} of {len(self._hands)} replicas"

    def _ask(self, call: Callable[[Any], Any], most: int | None = None) -> list[Any]:
        """Returns what the replicas that are alive, or so many of them, say to a call.

        Raises `EngineDiedError` when one of them is lost meanwhile.
        """
        try:
            found: list[Any] = self._ray.get([call(actor) for actor in self._alive()[:most]])
        except self._ray.exceptions.RayActorError as error:
            raise EngineDiedError(f"a replica was lost: {first_line(error)}") from error
        return found

    def _alive(self) -> list[Any]:
        return [hand.actor for hand in self._hands if hand.is_ready]

    def _fill(self, source: Iterator[Request | None]) -> bool:
        """Takes as many requests as the replicas have room for; returns whether more may come."""
        room = sum(self._room(hand) for hand in self._hands) - len(self._waiting)
        for _ in range(room):
            request = next(source, self)
            if request is self:
                return False
            if request is None:
                break
            assert isinstance(request, Request)
            self._waiting.append(request)
        return True

    def _room(self, hand: _Hand) -> int:
        return self._window - len(hand.under_way) if hand.is_ready else 0

    def _hand_out(self) -> None:
        """Gives each idle replica an equal part of what waits, and asks it for answers."""
        idle = [hand for hand in self._hands if hand.is_ready and hand.call is None]
        for index, hand in enumerate(idle):
            share = math.ceil(len(self._waiting) / (len(idle) - index))
            number = min(share, self._room(hand))
            batch = [self._waiting.popleft() for _ in range(number)]
            hand.under_way |= {request.id: request for request in batch}
            if hand.under_way:
                hand.call = hand.actor.exchange.remote(pickle.dumps(batch))

    def _receive(self) -> Iterator[Answer]:
        """Waits a while for the replicas; yields what they answered."""
        for hand in self._hands:
            if not hand.is_ready and hand.call is None and time.monotonic() >= hand.call_at:
                hand.call = hand.actor.facts.remote()
        calls = {hand.call: hand for hand in self._hands if hand.call is not None}
        if not calls:
            time.sleep(RETRY_SECONDS)
            return
        self._ray.wait(list(calls), num_returns=1, timeout=RETRY_SECONDS)
        done, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=0)
        for call in done:
            hand = calls[call]
            hand.call = None
            try:
                found = self._ray.get(call)
            except self._ray.exceptions.RayError as error:
                hand.call_at = time.monotonic() + RETRY_SECONDS
                # Where it is not ready, Ray is only starting it again.
                is_away = isinstance(error, self._ray.exceptions.ActorUnavailableError)
                if hand.is_ready or not is_away:
                    self._lost(hand, error)
                continue
            if not hand.is_ready:
                hand.is_ready, self.facts = True, self.facts or found
                continue
            answers, steps = pickle.loads(found)
            self.steps += steps != hand.steps
            hand.steps = steps
            hand.num_failures = 0 if answers else hand.num_failures
            for answer in answers:
                # Who was taken for lost may answer still; somebody else was asked meanwhile.
                if hand.under_way.pop(answer.id, None):
                    yield answer

    def _lost(self, hand: _Hand, error: Exception) -> None:
        """Hands out again what a replica had under way, and waits for it to come back.

        Raises the engine's own user, stage or store error; `EngineDiedError` when none is left.
        """
        cause = getattr(error, "cause", None)
        if isinstance(cause, BaseException) and type(cause).__name__ in BY_NAME:
            raise cause
        reason = first_line(cause or error)
        number = len(hand.under_way)
        self._waiting.extendleft(reversed(hand.under_way.values()))
        hand.under_way = {}
        hand.is_ready = False
        hand.num_failures += 1
        is_over = hand.num_failures > self._max_failures
        if cause is not None or is_over:  # its engine failed, but the actor lives
            self._ray.kill(hand.actor, no_restart=is_over)
        if is_over:
            self._hands.remove(hand)
        self._note(
            f"replica {hand.index + 1} was lost ({reason}); {number} requests are handed out "
            f"again; {self.shown} are alive"
        )
        if not self._hands:
            raise EngineDiedError(f"no replica stayed alive; the last was lost for: {reason}")
