"""What the teacher is asked: the complete key of each request, and which answer serves it.

A ledger belongs to one request context (model, engine, sampling, template ...); within it a
request is its messages, tools and sample number. Limits are not part of the key: an answer that was
cut off at a lower limit is asked again, or continued, and every other one is reused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from retort.data import reasoning, task_types
from retort.engines import Request, resolve
from retort.errors import DataError
from retort.records import Example, JsonObject, Message, Response, sha256_of
from retort.spec import JobSpec
from retort.stages.engine_settings import engine_of, teacher_digest
from retort.store import model_folder
from retort.store.ledger import NO_LIMIT, Ledger, LedgerEntry, StoredAnswer
from retort.store.signals import Signal

FORMAT = 1
# Answers to score, as ids or as text, by example and the number of the sample.
Written = dict[str, dict[int, str | list[int]]]


@dataclass(frozen=True)
class TeacherRequest:
    """One request to the teacher. `rest` are the user's later turns, each a list of messages;
    `instruction` is what the teacher is told with the question."""

    key: str
    example: Example
    sample: int
    turn: int
    messages: list[Message]
    rest: list[list[Message]] = field(default_factory=list)
    instruction: str | None = None

    @property
    def id(self) -> str:
        """The response's id: the example's own for the first answer to it."""
        first = self.sample == 0 and self.turn == 0
        return self.example.id if first else f"{self.example.id}#{self.sample}.{self.turn}"


@dataclass(frozen=True)
class TruncatedAnswer:
    """An answer that was cut off: its ids, their signal, and the limits it was asked with.

    `limits` are (max_tokens, max_model_len).
    """

    token_ids: list[int]
    signal: Signal | None
    limits: tuple[int, int]


def request_context(spec: JobSpec) -> JsonObject:
    """Returns what all requests of a job have in common and what decides their answers."""
    knobs = spec.generate
    greedy = knobs.temperature == 0 or knobs.mode == "score"
    context = {
        "format": FORMAT,
        "engine": resolve(knobs.engine, knobs.top_k),
        "model": teacher_digest(spec),
        "mode": knobs.mode,
        "temperature": 0.0 if greedy else knobs.temperature,
        "top_p": 1.0 if greedy else knobs.top_p,
        "seed": None if greedy else knobs.seed,
        # An endpoint lists no more than so many: beyond that the requests are the same.
        "top_k": min(knobs.top_k, getattr(engine_of(spec), "MOST_LISTED", knobs.top_k)),
        "logprobs_mode": "raw_logprobs" if knobs.top_k else "none",
        "dtype": knobs.dtype,
    }
    # Only where they are set, so that ledgers from before these knobs keep their names.
    steering = ("frequency_penalty", "presence_penalty", "stop")
    context |= {name: getattr(knobs, name) for name in steering if getattr(knobs, name)}
    if engine_of(spec).REMOTE:
        return context
    folder = model_folder.locate(knobs.teacher, "generate.teacher")
    context["token_map_sha256"] = model_folder.token_map(folder)[0]
    context["template_sha256"] = model_folder.template_sha256(folder)
    if model_folder.length_changes_answers(folder):
        context["max_model_len"] = knobs.max_model_len
    return context


def ledger_name(context: JsonObject) -> str:
    """Returns the name of the ledger of a request context."""
    return sha256_of(context)[:16]


def instruction_of(spec: JobSpec) -> str | None:
    """Returns what the teacher is told with each question and the student is not, if anything."""
    return reasoning.instruction(task_types.load(spec.prepare.task_type), spec.generate)


def with_instruction(messages: list[Message], instruction: str | None) -> list[Message]:
    """Returns a chat as the teacher sees it."""
    return reasoning.instructed(messages, instruction) if instruction else messages


class RequestPlan:
    """Every request of a job, and what its ledger has of it already.

    What the ledger's own run asked is not asked again: rows to retry are those of earlier runs.
    `written` are the answers to score, by example, where they are not the rows' own.
    """

    def __init__(self, spec: JobSpec, ledger: Ledger, written: Written | None = None):
        self._knobs, self._ledger, self._written = spec.generate, ledger, written
        turns = self._knobs.turns
        is_conversation = spec.prepare.task_type == "conversation"
        self._all_turns = turns == "all" or (turns == "auto" and is_conversation)
        self._instruction = instruction_of(spec)
        self._continues = engine_of(spec).CONTINUES

    @property
    def limits(self) -> tuple[int, int]:
        """The (max_tokens, max_model_len) up to which an answer may go in the end."""
        knobs = self._knobs
        return knobs.max_tokens_retry or knobs.max_tokens, knobs.max_model_len or NO_LIMIT

    def num_requests(self, example: Example) -> int:
        """Returns how many responses an example has when every turn is answered."""
        return len(self._samples(example)) * len(self._turns(example))

    def walk(self, example: Example) -> Iterator[tuple[TeacherRequest, LedgerEntry | None]]:
        """Yields each request of an example with the entry that serves it, if there is one.

        A conversation ends at the first turn without an accepted answer.
        """
        first, *rest = self._turns(example)
        for sample in self._samples(example):
            yield from self.turns_from(self._request(example, sample, 0, first, rest))

    def turns_from(
        self, request: TeacherRequest
    ) -> Iterator[tuple[TeacherRequest, LedgerEntry | None]]:
        """Yields a request and those of later turns whose chat is known already."""
        current: TeacherRequest | None = request
        while current:
            entry = self.entry_for(current)
            yield current, entry
            if not (entry and current.rest and entry.state == "accepted"):
                return
            stored, _ = self._ledger.read(entry)
            current = self.next_turn(current, self._ledger.response(stored))

    def next_turn(self, request: TeacherRequest, response: Response) -> TeacherRequest | None:
        """Returns the request of the next turn, in which the teacher sees its own reply."""
        if not request.rest or response.state != "accepted":
            return None
        text = reasoning.split(response.text)[1] if self._instruction else response.text
        reply = {"role": "assistant", "content": text}
        chat = [*request.messages, reply, *request.rest[0]]
        turn, rest = request.turn + 1, request.rest[1:]
        return self._request(request.example, request.sample, turn, chat, rest)

    def entry_for(self, request: TeacherRequest) -> LedgerEntry | None:
        """Returns the ledger's entry that serves a request, or None when it must be asked."""
        entry = self._ledger.find(request.key)
        if entry is None:
            return None
        is_retried = entry.transient or entry.state in self._knobs.runtime.retry
        if is_retried and not entry.of_this_run:
            return None
        (had_tokens, had_length), (tokens, length) = entry.limits, self.limits
        if entry.state == "truncated" and (had_tokens < tokens or had_length < length):
            return None
        if entry.state == "too_long" and had_length < length:
            return None
        return entry

    def engine_request(
        self, request: TeacherRequest, truncated: TruncatedAnswer | None
    ) -> tuple[Request, tuple[int, int]]:
        """Returns what the engine is given, and the limits it is asked with.

        An earlier answer that was cut off is continued from its ids where the engine can and the
        limit leaves room; elsewhere it is asked anew, with the higher limit if there is one.
        """
        knobs, (most, length) = self._knobs, self.limits
        greedy, max_tokens, room = knobs.temperature == 0, knobs.max_tokens, 0
        if truncated:
            if truncated.limits[0] >= knobs.max_tokens and truncated.limits[1] >= length:
                max_tokens = most
            room = max_tokens - len(truncated.token_ids)
        engine_request = Request(
            request.key,
            with_instruction(request.messages, self._instruction),
            tools=request.example.tools,
            max_tokens=max_tokens,
            seed=None if greedy else (knobs.seed + int(request.key[:8], 16)) % (1 << 31),
            continues=truncated.token_ids if truncated and self._continues and room > 0 else None,
            response=self._scored(request.example, request.sample)
            if knobs.mode == "score"
            else None,
        )
        return engine_request, (max_tokens, length)

    def truncated(self, request: TeacherRequest) -> TruncatedAnswer | None:
        """Returns the ledger's answer to a request that was cut off at a lower limit, if any."""
        entry = self._ledger.find(request.key)
        if entry is None or entry.state != "truncated":
            return None
        response = self._ledger.response(self._ledger.read(entry)[0])
        return TruncatedAnswer(response.token_ids, self._ledger.signal(entry), entry.limits)

    def response(self, request: TeacherRequest, stored: StoredAnswer) -> Response:
        """Returns a stored answer as the later stages see it, joined to its example."""
        response = self._ledger.response(stored)
        if response.state == "accepted" and response.num_tokens > self.limits[0]:
            response = replace(response, state="truncated", cause="longer than max_tokens")
        is_own_chat = request.messages == request.example.messages
        return replace(
            response,
            id=request.id,
            example_id=request.example.id,
            sample=request.sample,
            turn=request.turn,
            messages=None if is_own_chat else request.messages,
        )

    def _request(
        self,
        example: Example,
        sample: int,
        turn: int,
        messages: list[Message],
        rest: list[list[Message]],
    ) -> TeacherRequest:
        chat = with_instruction(messages, self._instruction)
        content: list[Any] = [chat, example.tools, sample]
        if self._knobs.mode == "score":
            content.append(self._scored(example, sample))
        key, own = sha256_of(content)[:32], self._instruction
        return TeacherRequest(key, example, sample, turn, messages, rest, own)

    def _samples(self, example: Example) -> Sequence[int]:
        """Returns the numbers of an example's samples."""
        return range(self._knobs.n) if self._written is None else [*self._written[example.id]]

    def _scored(self, example: Example, sample: int) -> str | list[int]:
        """Returns the answer that is scored. Raises `DataError` where there is none."""
        own = example.reference if self._written is None else self._written[example.id][sample]
        if not own:
            raise DataError(
                f"example {example.id} has no answer of its own to score; give every row one, "
                "or set generate.mode: answer"
            )
        return own

    def _turns(self, example: Example) -> list[list[Message]]:
        """Returns the user's part of each turn without the row's own replies; or all in one."""
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
                turns[-1].append(message)  # a greeting before the first question belongs to it
        return [turn for turn in turns if turn]
