"""One stream of pending requests to an engine; each finished answer goes straight to the ledger.

Everything that asks a model what a ledger may hold already (generate, a judge, a second teacher,
the comparison of a model at an endpoint) asks through this loop.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from retort.engines import Answer, GenerateFunction, Request
from retort.errors import StageError
from retort.records import Example, Response
from retort.stages.budget import Budget
from retort.stages.teacher_requests import RequestPlan, TeacherRequest, TruncatedAnswer
from retort.store.ledger import Ledger, StoredAnswer
from retort.store.signals import Signal, join

Listener = Callable[[TeacherRequest, Answer, Response], None]


@dataclass(frozen=True)
class Pending:
    """A request that the ledger cannot serve, and the cut-off answer that it may continue."""

    request: TeacherRequest
    truncated: TruncatedAnswer | None = None


@dataclass(frozen=True)
class _Sent:
    """A request under way, and the limits that it was sent with."""

    pending: Pending
    limits: tuple[int, int]


class RequestLoop:
    """Sends what is pending, commits what is answered, and keeps within the budget.

    The budget's artifact pays; `listener` hears of each response that is final: one that is
    continued or asked again with a higher limit is not. `refused_by` is the knob of the budget that
    ended the loop, empty where none did.
    """

    def __init__(self, plan: RequestPlan, ledger: Ledger, budget: Budget, listener: Listener):
        self._plan, self._ledger, self._budget, self._listener = plan, ledger, budget, listener
        self._follow_ups: deque[Pending] = deque()
        self._sent: dict[str, _Sent] = {}
        self.num_sent = 0
        self.refused_by = ""

    def pending(self, examples: Iterable[Example]) -> Iterator[Pending]:
        """Yields what must be asked of some examples, each looked up when its turn comes."""
        for example in examples:
            yield from self._unanswered(self._plan.walk(example))

    def run(self, answers: GenerateFunction, examples: Iterable[Example]) -> None:
        """Asks what the ledger lacks of some examples; `answers` is an engine's `generate`, or its
        `score` for the signal of answers that exist.

        Raises `StageError` when the engine leaves a request unanswered, or answers one twice.
        """
        for answer in answers(self._requests(self.pending(examples))):
            self._receive(answer)
        if self._sent:
            raise StageError(f"the engine left {len(self._sent)} requests unanswered")

    def _unanswered(self, walked: Iterable[tuple[TeacherRequest, object]]) -> Iterator[Pending]:
        for request, entry in walked:
            if entry is None:
                yield Pending(request, self._plan.truncated(request))

    def _requests(self, pending: Iterator[Pending]) -> Iterator[Request | None]:
        """Yields requests while the budget allows; later turns and continuations come first."""
        held: deque[Pending] = deque()
        while not self.refused_by:
            queue = held or self._follow_ups
            found = queue.popleft() if queue else next(pending, None)
            if found is None:
                if not self._sent:
                    return
                yield None
                continue
            request, limits = self._plan.engine_request(found.request, found.truncated)
            if refused := self._budget.refuses(found.request, limits[0]):
                held.append(found)
                if not self._sent:
                    self.refused_by = refused
                    return
                yield None
                continue
            if request.id in self._sent:
                continue
            self._budget.reserve(found.request, limits[0])
            continued = found if request.continues else Pending(found.request)
            self._sent[request.id] = _Sent(continued, limits)
            self.num_sent += 1
            yield request

    def _receive(self, answer: Answer) -> None:
        """Commits one answer, then reads it and queues what follows from it."""
        sent = self._sent.pop(answer.id, None)
        if sent is None:
            raise StageError(f"the engine answered {answer.id} twice or unasked")
        request, signal = sent.pending.request, _joined(sent.pending.truncated, answer)
        stored = StoredAnswer(
            answer.id, sent.limits, self._budget.artifact, time.time(), answer.raw
        )
        response = self._ledger.add(stored, signal)
        self._budget.received(stored, response, request, sent.limits[0])
        if self._plan.entry_for(request) is None:
            truncated = TruncatedAnswer(response.token_ids, signal, sent.limits)
            self._follow_ups.append(Pending(request, truncated))
            return
        self._listener(request, answer, response)
        if following := self._plan.next_turn(request, response):
            self._follow_ups += self._unanswered(self._plan.turns_from(following))


def _joined(truncated: TruncatedAnswer | None, answer: Answer) -> Signal | None:
    """Returns the signal of a whole answer, that of the ids it continues put before its own."""
    earlier = truncated.signal if truncated else None
    if not (truncated and earlier):
        return answer.signal
    if len(answer.raw.get("token_ids", ())) < len(truncated.token_ids):
        return answer.signal
    return join(earlier, answer.signal) if answer.signal else earlier
