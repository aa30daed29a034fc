"""What the teacher is asked: the complete key of each request, and which answer serves it.

A ledger belongs to one request context (model, engine, sampling, template ...); within it a
request is its messages, tools and sample number. Limits are no part of the key: an answer that was
cut off at a lower limit is asked again, or continued, and every other one stands.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from retort.data import reasoning, task_types
from retort.engines import Request, resolve
from retort.errors import DataError
from retort.records import Example, Message, Response, sha256_of
from retort.spec import JobSpec
from retort.stages.engine_settings import engine_of, teacher_digest
from retort.store import model_folder
from retort.store.ledger import NO_LIMIT, Ledger, LedgerEntry, StoredAnswer
from retort.store.signals import Signal

FORMAT = 1


@dataclass(frozen=True)
class TeacherRequest:
    """One request of the plan. `rest` are the user's later turns, each a list of messages."""

    key: str
    example: Example
    sample: int
    turn: int
    messages: list[Message]
    rest: list[list[Message]] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The response's id: the example's own for the first answer to it."""
        first = self.sample == 0 and self.turn == 0
        return self.example.id if first else f"{self.example.id}#{self.sample}.{self.turn}"


@dataclass(frozen=True)
class TruncatedAnswer:
    """An answer that was cut off: its ids, their signal, and the limits it was asked with."""

    token_ids: list[int]
    signal: Signal | None
    limits: tuple[int, int]


def request_context(spec: JobSpec) -> dict[str, Any]:
    """Returns all that is common to a job's requests and decides what is answered."""
    knobs = spec.generate
    greedy = knobs.temperature == 0 or knobs.mode == "score"
    found = {
        "format": FORMAT,
        "engine": resolve(knobs.engine, knobs.top_k),
        "model": teacher_digest(spec),
        "mode": knobs.mode,
        "temperature": 0.0 if greedy else knobs.temperature,
        "top_p": 1.0 if greedy else knobs.top_p,
        "seed": None if greedy else knobs.seed,
        "top_k": knobs.top_k,
        "logprobs_mode": "raw_logprobs" if knobs.top_k else "none",
        "dtype": knobs.dtype,
    }
    # Only where they are set: what was asked before these knobs were there still stands.
    steering = ("frequency_penalty", "presence_penalty", "stop")
    found |= {name: getattr(knobs, name) for name in steering if getattr(knobs, name)}
    if engine_of(spec).REMOTE:
        return found
    folder = model_folder.locate(knobs.teacher, "generate.teacher")
    found["token_map_sha256"] = model_folder.token_map(folder)[0]
    found["template_sha256"] = model_folder.template_sha256(folder)
    if model_folder.length_changes_answers(folder):
        found["max_model_len"] = knobs.max_model_len
    return found


def ledger_name(found: dict[str, Any]) -> str:
    """Returns the name of the ledger of a request context."""
    return sha256_of(found)[:16]


def instruction_of(spec: JobSpec) -> str | None:
    """Returns what the teacher is told with each question and the student is not, if anything."""
    return reasoning.instruction(task_types.load(spec.prepare.task_type), spec.generate)


def as_put(messages: list[Message], instruction: str | None) -> list[Message]:
    """Returns a chat as the teacher sees it."""
    return reasoning.instructed(messages, instruction) if instruction else messages


class RequestPlan:
    """Every request of a job, and what the ledger already has of it.

    `since` is when the run began, in seconds since 1970: rows to retry stand once they are newer.
    """

    def __init__(self, spec: JobSpec, ledger: Ledger, since: float):
        self._knobs, self._ledger, self._since = spec.generate, ledger, since
        turns = self._knobs.turns
        conversation = spec.prepare.task_type == "conversation"
        self._all_turns = turns == "all" or (turns == "auto" and conversation)
        self._instruction = instruction_of(spec)
        self._continues = engine_of(spec).CONTINUES

    @property
    def limits(self) -> tuple[int, int]:
        """The (max_tokens, max_model_len) up to which an answer may go in the end."""
        knobs = self._knobs
        return knobs.max_tokens_retry or knobs.max_tokens, knobs.max_model_len or NO_LIMIT

    def num_requests(self, example: Example) -> int:
        """Returns how many responses an example has when every turn is answered."""
        return self._knobs.n * len(self._turns(example))

    def walk(self, example: Example) -> Iterator[tuple[TeacherRequest, LedgerEntry | None]]:
        """Yields each request of an example with the answer that serves it, if one does.

        A conversation ends at the first turn without an accepted answer.
        """
        first, *rest = self._turns(example)
        for sample in range(self._knobs.n):
            yield from self.chain(self._ask(example, sample, 0, first, rest))

    def chain(self, ask: TeacherRequest) -> Iterator[tuple[TeacherRequest, LedgerEntry | None]]:
        """Yields a request and those after it whose chat is known already."""
        current: TeacherRequest | None = ask
        while current:
            standing = self.entry_for(current)
            yield current, standing
            if not (standing and current.rest and standing.state == "accepted"):
                return
            entry, _ = self._ledger.read(standing)
            current = self.after(current, self._ledger.response(entry))

    def after(self, ask: TeacherRequest, response: Response) -> TeacherRequest | None:
        """Returns the request of the next turn, the teacher seeing its own reply."""
        if not ask.rest or response.state != "accepted":
            return None
        text = reasoning.split(response.text)[1] if self._instruction else response.text
        reply = {"role": "assistant", "content": text}
        chat = [*ask.messages, reply, *ask.rest[0]]
        return self._ask(ask.example, ask.sample, ask.turn + 1, chat, ask.rest[1:])

    def entry_for(self, ask: TeacherRequest) -> LedgerEntry | None:
        """Returns the committed answer that serves a request, or None when it must be asked."""
        found = self._ledger.find(ask.key)
        if found is None:
            return None
        earlier = found.at < self._since
        if earlier and (found.state in self._knobs.runtime.retry or found.transient):
            return None
        (had_tokens, had_length), (tokens, length) = found.limits, self.limits
        if found.state == "truncated" and (had_tokens < tokens or had_length < length):
            return None
        if found.state == "too_long" and had_length < length:
            return None
        return found

    def request(
        self, ask: TeacherRequest, cut: TruncatedAnswer | None
    ) -> tuple[Request, tuple[int, int]]:
        """Returns the request, and the limits it is asked with.

        An earlier answer that was cut off is continued from its ids where the engine can and the
        limit leaves room; elsewhere it is asked anew, with the higher limit if there is one.
        """
        knobs, (most, length) = self._knobs, self.limits
        greedy = knobs.temperature == 0
        tried = cut is not None and cut.limits[0] >= knobs.max_tokens and cut.limits[1] >= length
        max_tokens = most if tried else knobs.max_tokens
        room = max_tokens - len(cut.token_ids) if cut else max_tokens
        request = Request(
            ask.key,
            self._put(ask.messages),
            tools=ask.example.tools,
            max_tokens=max_tokens,
            seed=None if greedy else (knobs.seed + int(ask.key[:8], 16)) % (1 << 31),
            continues=cut.token_ids if cut and self._continues and room > 0 else None,
            response=ask.example.reference if knobs.mode == "score" else None,
        )
        return request, (max_tokens, length)

    def cut(self, ask: TeacherRequest) -> TruncatedAnswer | None:
        """Returns the committed answer to a request that was cut off at a lower limit, if any."""
        found = self._ledger.find(ask.key)
        if found is None or found.state != "truncated":
            return None
        response = self._ledger.response(self._ledger.read(found)[0])
        return TruncatedAnswer(response.token_ids, self._ledger.signal(found), found.limits)

    def view(self, ask: TeacherRequest, entry: StoredAnswer) -> Response:
        """Returns the response as the later stages see it, joined to its example."""
        found = self._ledger.response(entry)
        if found.state == "accepted" and found.num_tokens > self.limits[0]:
            found = replace(found, state="truncated", cause="longer than max_tokens")
        own = ask.messages == ask.example.messages
        return replace(
            found,
            id=ask.id,
            example_id=ask.example.id,
            sample=ask.sample,
            turn=ask.turn,
            messages=None if own else ask.messages,
        )

    def _ask(
        self,
        example: Example,
        sample: int,
        turn: int,
        messages: list[Message],
        rest: list[list[Message]],
    ) -> TeacherRequest:
        content: list[Any] = [self._put(messages), example.tools, sample]
        if self._knobs.mode == "score":
            if not example.reference:
                raise DataError(
                    f"example {example.id} has no answer of its own to score; give every row one, "
                    "or set generate.mode: answer"
                )
            content.append(example.reference)
        return TeacherRequest(sha256_of(content)[:32], example, sample, turn, messages, rest)

    def _put(self, messages: list[Message]) -> list[Message]:
        return as_put(messages, self._instruction)

    def _turns(self, example: Example) -> list[list[Message]]:
        """Returns the user's part of each turn, the row's own replies left out; or all in one."""
        chat = example.messages
        uses_tools = any(m["role"] == "tool" or "tool_calls" in m for m in chat)
        if not self._all_turns or uses_tools:
            return [chat]
        turns: list[list[Message]] = [[]]
        for message in chat:
            if message["role"] != "assistant":
                turns[-1].append(message)
            elif any(m["role"] == "user" for m in turns[-1]):
                turns.append([])
            else:
                turns[-1].append(message)  # a greeting before the first question stays
        return [turn for turn in turns if turn]
