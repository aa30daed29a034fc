"""expand: a model writes more training prompts of the kind of the job's own, in batches.

It sees training prompts only, and what repeats one of them, a sibling or a held-out row is refused.
Every reply is in a ledger, and every draw is named by its batch: a killed run goes on where it was,
and the same ledger gives the same prompts.
"""

import uuid
from collections import Counter
from dataclasses import dataclass, replace

import orjson

from retort.engines import Request
from retort.errors import DataError
from retort.processes.resident import Resident
from retort.records import EXPANDED, Example, JsonObject, Quarantined, write_lines
from retort.spec import JobSpec
from retort.spec.expand import Way
from retort.stages.engine_settings import resident_of
from retort.stages.expand.agreement import agreed, is_verified
from retort.stages.expand.form import Form
from retort.stages.expand.novelty import Novelty
from retort.stages.expand.replies import texts_in, values_in
from retort.stages.expand.ways import FAILED, Material, Writing, first_writings, write_from
from retort.stages.judge import RETRY, Consultation, as_teacher, ask, teaching
from retort.stages.stage import Stage, read_examples
from retort.store import MANIFEST
from retort.store.files import SCRATCH

LEAST_BATCH, LARGEST_BATCH = 32, 512  # prompts asked for
DRAWS = 4  # times as many draws as requests: some were asked before
QUARANTINE = "quarantine.jsonl"


def expand(stage: Stage) -> JsonObject:
    """Writes the examples of `prepare` and the new ones, the bad rows and the refused prompts;
    returns prepare's facts with those counted.

    Raises `DataError` where no training row can be continued, and what `judge.ask` raises.
    """
    train = read_examples(stage.input("prepare"), "train")
    expansion = Expansion(stage, train)
    try:
        ended = expansion.run()
    finally:
        expansion.close()
    for name in (name for name in expansion.prepared.files() if _is_copied(name)):
        stage.out.write(name, expansion.prepared.read(name))
    size = stage.spec.prepare.shard_size
    shards = -(-len(train) // size)
    for start in range(0, len(expansion.kept), size):
        name = f"train-{shards + start // size:05d}.jsonl"
        stage.out.write(name, write_lines(expansion.kept[start : start + size]))
    if lines := expansion.quarantine():
        stage.out.write(QUARANTINE, lines)
    stage.report.note(
        f"{len(train):,} prompts are {len(train) + len(expansion.kept):,} now: {ended}"
    )
    return expansion.facts(ended)


def _is_copied(name: str) -> bool:
    return name not in (MANIFEST, QUARANTINE) and not name.startswith(SCRATCH)


@dataclass(frozen=True)
class Written:
    """A prompt that was written, and the request that it came from."""

    text: str
    origin: Writing


class Expansion:
    """The batches of one stage: what was kept, refused and asked so far."""

    def __init__(self, stage: Stage, train: list[Example]):
        assert stage.spec.expand
        self.stage, self.knobs = stage, stage.spec.expand
        self.prepared = stage.input("prepare")
        self._train, self._form = train, Form(stage.spec, train)
        text_of = self._form.text_of
        held_out = read_examples(self.prepared, "validation", "test")
        self._novelty = Novelty(stage.spec, map(text_of, train), map(text_of, held_out))
        self._sources, self._material = list(self._form.seeds), Material()
        self._asked, self._run = set[str](), uuid.uuid4().hex
        self._requests: dict[str, list[Request]] = {"writer": [], "teacher": []}
        self._answered: dict[str, Consultation] = {}
        self._spending: dict[str, dict[str, float]] = {}
        self._residents: dict[str, Resident | None] = {}
        self.kept: list[Example] = []
        self._refused: list[tuple[Written, str]] = []
        self._batches: list[dict[str, int]] = []
        self._num_empty = 0

    @property
    def _num_missing(self) -> int:
        return self.knobs.to - len(self._train) - len(self.kept)

    def run(self) -> str:
        """Writes prompts until there are enough; returns why it ended."""
        if self._num_missing <= 0:
            return f"there are as many as expand.to: {self.knobs.to:,} without a new one"
        if not self._form.seeds:
            raise DataError(
                "expand: no row of prepare.train can be continued; those can whose chat is one "
                "turn of the user, without tools, and without choices of its own. Give such rows, "
                "or take the section expand out"
            )
        self._learn_material()
        ended = ""
        while not ended and self._num_missing > 0:
            ended = self._batch()
            if ended or self._num_missing <= 0:
                self._refuse_late()
        return ended or "there are enough"

    def _learn_material(self) -> None:
        """Asks for attributes and persons, which are then drawn from."""
        first = first_writings(self.knobs, self._form.seeds)
        replies = self._write(first)
        for writing in first:
            reply = replies.get(writing.id, "")
            if writing.way == "attributes":
                self._material.attributes = values_in(reply)
            else:
                persons = texts_in(reply, is_list=True)
                self._material.personas += [(writing.parents[0], person) for person in persons]

    @property
    def _ways(self) -> list[Way]:
        """The ways that can be used: some need what the model was to name first."""
        needs: dict[Way, object] = {
            "attributes": self._material.attributes,
            "persona": self._material.personas,
        }
        return [way for way in self.knobs.by if needs.get(way, True)]

    def _batch(self) -> str:
        """Asks for a batch of prompts and keeps what can be used; returns why it is the last one,
        if it is."""
        writings = self._draw()
        if not writings:
            return (
                "the writer named neither attributes nor persons"
                if not self._ways
                else ("every request that can be drawn was asked")
            )
        replies, written = self._write(writings), list[Written]()
        for writing in writings:
            texts = texts_in(replies.get(writing.id, ""), writing.num_asked > 1)
            self._num_empty += not texts
            written += [Written(text, writing) for text in texts]
        usable = self._verified(self._new(written))
        used = usable[: self._num_missing]
        self._sources += [self._form.add(example) for example in used]
        self._novelty.add(self._form.text_of(example) for example in used)
        self.kept += used
        self._batches.append({"written": len(written), "usable": len(usable)})
        self._tell()
        if not usable or len(usable) < self.knobs.min_new * len(written):
            return (
                f"stopped, for {len(usable):,} of the last {len(written):,} written prompts can be "
                f"used; expand.min_new is {self.knobs.min_new:g}{self._most_refused()}"
            )
        return ""

    def _draw(self) -> list[Writing]:
        """Returns the requests of the next batch, none of which was asked before."""
        wanted = min(max(self._num_missing, LEAST_BATCH), LARGEST_BATCH)
        number, expected, found, ways = 0, 0, list[Writing](), self._ways
        while ways and expected < wanted and number < DRAWS * wanted:
            name = f"{len(self._batches)}.{number}"
            way = ways[number % len(ways)]
            drawn = write_from(self.knobs, way, name, self._sources, self._material)
            number += 1
            if drawn.text not in self._asked:
                self._asked.add(drawn.text)
                found.append(drawn)
                expected += drawn.num_asked
        return found

    def _write(self, writings: list[Writing]) -> dict[str, str]:
        """Returns the writer's replies by the requests' ids."""
        self._requests["writer"] += [
            Request(writing.id, [{"role": "user", "content": writing.text}]) for writing in writings
        ]
        return self._ask("writer").texts if writings else {}

    def _ask(self, whom: str) -> Consultation:
        """Returns all answers of the writer or the teacher up to now, those of a new batch too."""
        spec, knobs = self.stage.spec, self.knobs
        sampling = {name: getattr(knobs, name) for name in ("temperature", "top_p", "seed")}
        where = "generate"
        if whom == "writer" and knobs.writer:
            where, spec = "expand.writer", as_teacher(spec, knobs.writer, **sampling)
        else:
            # The teacher is asked for text alone; of several it is the first one.
            runtime = spec.generate.runtime.model_copy(update={"retry": RETRY})
            own = {"top_k": 0, "mode": "answer", "turns": "last", "teachers": {}, "route": None}
            own |= {"runtime": runtime, "max_tokens_retry": None, "n": knobs.samples or 1}
            if whom == "writer":
                own |= {"n": 1, "max_tokens": knobs.max_tokens}
                own |= {"reasoning": "none", "instruction": None, "stop": ()}
            spec = teaching(spec, spec.generate.model_copy(update=own | sampling))
        stage = replace(self.stage, spec=spec, resident=self._resident(where, spec))
        found = ask(stage, self._requests[whom], where, self._run)
        # As writer the teacher has the same ledger: what is there last is all that was spent.
        self._answered[whom], self._spending[where] = found, found.spending
        return found

    def _resident(self, where: str, spec: JobSpec) -> Resident | None:
        """Returns the process in which a model stays open from batch to batch; the other model
        gives back its accelerator's memory meanwhile."""
        if where not in self._residents:
            self._residents[where] = resident_of(spec, self.stage.log)
        for other, resident in self._residents.items():
            if resident and other != where:
                resident.rest()
        return self._residents[where]

    def close(self) -> None:
        """Ends the processes of the models."""
        for resident in filter(None, self._residents.values()):
            resident.end()

    def _new(self, written: list[Written]) -> list[tuple[Written, Example]]:
        """Returns the written prompts that the job can ask and that are new, as examples."""
        asked: list[tuple[Written, Example]] = []
        for each in written:
            try:
                if not any(map(str.isalnum, each.text)):
                    raise ValueError("it has no words")
                if FAILED.search(each.text):
                    raise ValueError("it speaks of the prompt that it was written from")
                asked.append((each, self._form.example_of(each.text, each.origin)))
            except ValueError as error:
                self._refused.append((each, str(error)))
        refusals = self._novelty.refusals([self._form.text_of(example) for _, example in asked])
        self._refused += [(asked[place][0], reason) for place, reason in refusals.items()]
        return [pair for place, pair in enumerate(asked) if place not in refusals]

    def _verified(self, new: list[tuple[Written, Example]]) -> list[Example]:
        """Returns the new prompts that the teacher answers alike each time."""
        if not (new and is_verified(self.stage.spec)):
            return [example for _, example in new]
        self._requests["teacher"] += [Request(e.id, e.messages) for _, e in new]
        texts, found = self._ask("teacher").texts, list[Example]()
        for written, example in new:
            outcome = agreed(self.stage.spec, example, texts)
            if isinstance(outcome, str):
                self._refused.append((written, outcome))
            else:
                found.append(outcome)
        return found

    def _refuse_late(self) -> None:
        """Takes out what is not new after all, seen beside everything that was kept."""
        late = self._novelty.late_refusals()
        for place, reason in late.items():
            example = self.kept[place]
            origin = Writing("", example.metadata["way"], "", tuple(example.metadata["parents"]))
            self._refused.append((Written(self._form.text_of(example), origin), reason))
        self.kept = [each for place, each in enumerate(self.kept) if place not in late]
        self._novelty.drop(late)

    def _most_refused(self) -> str:
        most = Counter(reason for _, reason in self._refused).most_common(1)
        return "".join(f"; most are refused because: {reason}" for reason, _ in most)

    def _tell(self) -> None:
        last = self._batches[-1]
        note = f"{last['usable']:,} of the last {last['written']:,} can be used"
        done = len(self._train) + len(self.kept)
        self.stage.report.progress(done, self.knobs.to, "prompts", note)

    def quarantine(self) -> bytes:
        """Returns prepare's bad rows and the refused prompts, as JSON lines."""
        bad = self.prepared.read(QUARANTINE) if self.prepared.has(QUARANTINE) else b""
        return bad + write_lines(
            [
                Quarantined(
                    f"{EXPANDED}/{written.origin.way}",
                    line,
                    reason,
                    orjson.dumps(
                        {"prompt": written.text, "parents": written.origin.parents}
                    ).decode(),
                )
                for line, (written, reason) in enumerate(self._refused, start=1)
            ]
        )

    def facts(self, ended: str) -> JsonObject:
        """Returns prepare's facts with the written prompts among them, and what became of these."""
        facts = self.stage.facts("prepare")
        reasons = Counter[str](facts["quarantine_reasons"])
        reasons.update(reason for _, reason in self._refused)
        kept, refused = len(self.kept), len(self._refused)
        refused_of = Counter(written.origin.way for written, _ in self._refused)
        ways = Counter(example.metadata["way"] for example in self.kept)
        expected = sum(example.expected is not None for example in self.kept)
        num_expected = {**facts["num_expected"]}
        num_expected["train"] = num_expected.get("train", 0) + expected
        return {
            **facts,
            "num_rows": _more(facts["num_rows"], kept + refused),
            "num_quarantined": facts["num_quarantined"] + refused,
            "quarantine_reasons": dict(reasons.most_common(20)),
            "num_examples": _more(facts["num_examples"], kept),
            "num_expected": num_expected,
            "expanded": {
                "num_own": len(self._train),
                "num_seeds": len(self._form.seeds),
                "num_kept": dict(ways),
                "num_refused": dict(refused_of),
                "num_empty_replies": self._num_empty,
                "num_batches": len(self._batches),
                "shares_usable": [b["usable"] / max(b["written"], 1) for b in self._batches],
                "ended": ended,
                "spending": self._spending,
            },
            "ledgers": sorted({found.ledger for found in self._answered.values()}),
            "num_unreached": sum(found.num_unreached for found in self._answered.values()),
        }


def _more(counts: dict[str, int], number: int) -> dict[str, int]:
    return {**counts, "train": counts.get("train", 0) + number}
