"""The rows of a pool that may be chosen: no bad ones, no copies, none that is answered or held out.

The rows themselves are in temporary files; in memory are hashes of them.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from retort.data.sources.source_row import SourceRow, dumped
from retort.errors import SpecError
from retort.events import Reporter
from retort.jobs.shadow.sample import Sample
from retort.records import Example, Quarantined, Removed, write_lines
from retort.spec import JobSpec
from retort.spec.prepare import Source
from retort.stages.engine_settings import engine_of
from retort.stages.prepare.rows import Read, Reader, kind_of, quarantined
from retort.stages.prepare.selection import Selection, Spool
from retort.stages.stage import stream_examples
from retort.stages.teacher_requests import RequestPlan, ledger_name, request_context
from retort.stages.teachers import each_job
from retort.store import Folder, Store
from retort.store.ledger import Ledger

SAY_EVERY_ROWS = 20_000
IN_LEDGER = "answered: the ledger has the teacher's answer already"
HELD_OUT = "held out by the job's ratios"
SAME_ID = "an id that a row of the job has"


class Pool:
    """The rows of a pool, read once, beside the rows that a job has.

    `prepared` are the job's examples where they were made: of its train rows only these count, as
    no other one is answered. `num_rows` counts the pool's rows, and `left_out` those that may not
    be chosen, by their reason.
    """

    def __init__(self, spec: JobSpec, source: Source, prepared: Folder | None, report: Reporter):
        self._spec, self._report = spec, report
        self._selection = Selection(_strict(spec))
        self._rows, self._left_out, self._num_left_out = Spool(), Spool(), 0
        self._indices: dict[str, int] = {}
        self.num_rows = self._num_own = 0
        self.left_out: Counter[str] = Counter()
        try:
            self._own_ids = self._add_own(prepared)
            self._add(source)
            self._selection.find_repeats()
            self._leave_out_repeats()
        except BaseException:
            self.close()
            raise

    def draw(self, most: int, seed: int, store: Store) -> list[Example]:
        """Returns rows that may be chosen, drawn by hash: at most one of a conversation, and none
        that the ledger has the teacher's answer to."""
        drawn, plans = Sample(most, seed), [*_plans(self._spec, store)]
        kept = [index for index in self._selection.kept("train") if index >= self._num_own]
        for index in kept:
            example = self._selection.example("train", index)
            is_answered = any(entry for plan in plans for _, entry in plan.walk(example))
            if is_answered or example.id in self._own_ids:
                reason = IN_LEDGER if is_answered else SAME_ID
                self._leave_out(reason, Removed(*self._place(index), reason, vars(example)))
            else:
                drawn.add(example)
        examples, ids = drawn.examples(), self._selection.rows["train"].ids if kept else []
        wanted = {example.id for example in examples}
        self._indices = {ids[index]: index for index in kept if ids[index] in wanted}
        return examples

    def place(self, id: str) -> tuple[str, int]:
        """Returns the file and line of a row that was drawn."""
        return self._place(self._indices[id])

    def row(self, id: str) -> bytes:
        """Returns a row that was drawn as it lies in the pool, as a line of JSON."""
        return self._rows.read(self._indices[id] - self._num_own)

    def reports(self) -> Iterator[bytes]:
        """Yields the record of each row that may not be chosen, as a line."""
        yield from map(self._left_out.read, range(self._num_left_out))

    def close(self) -> None:
        """Deletes the temporary files."""
        for each in (self._selection, self._rows, self._left_out):
            each.close()

    def _add_own(self, prepared: Folder | None) -> set[str]:
        """Adds the job's rows; returns their ids."""
        asked = None
        if prepared:
            asked = {example.id for example in stream_examples(prepared, "train")}
        reader, ids = Reader(self._spec), set[str]()
        for read in reader.rows():
            is_train = read.split == "train"
            if read.example is None:
                continue
            ids.add(read.example.id)
            if is_train and asked is not None and read.example.id not in asked:
                continue
            self._num_own += is_train
            self._selection.add(read)
        self._selection.add_all_foreign(reader)
        return ids

    def _add(self, source: Source) -> None:
        """Adds the pool's rows, as train rows of the job."""
        for read in _rows(self._spec, source):
            self.num_rows += 1
            if self.num_rows % SAY_EVERY_ROWS == 0:
                self._report.progress(self.num_rows, self.num_rows, "rows", "reading")
            if read.example is None:
                self._leave_out(f"bad: {kind_of(read.reason or '')}", quarantined(read))
            elif read.split != "train":
                row = read.raw.file, read.raw.line
                self._leave_out(HELD_OUT, Removed(*row, HELD_OUT, vars(read.example)))
            else:
                self._selection.add(read)
                self._rows.add(_line(read.raw))

    def _leave_out_repeats(self) -> None:
        """Leaves out the copies of other rows, those of the job and held-out ones among them."""
        removed = self._selection.removed.get("train", {})
        for index, report in zip(sorted(removed), self._selection.reports("train"), strict=True):
            if index < self._num_own:
                continue
            is_own = removed[index].kind != "leak" and removed[index].other < self._num_own
            reason = f"{report.reason} of a row that is answered" if is_own else report.reason
            self._leave_out(reason, replace(report, reason=reason))

    def _leave_out(self, reason: str, record: Quarantined | Removed) -> None:
        self.left_out[reason] += 1
        self._left_out.add(write_lines([record]))
        self._num_left_out += 1

    def _place(self, index: int) -> tuple[str, int]:
        rows = self._selection.rows["train"]
        return rows.files[index], rows.lines[index]


def _strict(spec: JobSpec) -> JobSpec:
    """Returns the job with the search for copies and leaks on: nobody pays for one knowingly."""
    knobs = spec.prepare
    copies = knobs.deduplicate.model_copy(update={"exact": True, "near": True})
    leaks = knobs.decontaminate.model_copy(update={"enabled": True})
    prepare = knobs.model_copy(update={"deduplicate": copies, "decontaminate": leaks})
    return spec.model_copy(update={"prepare": prepare})


def _rows(spec: JobSpec, source: Source) -> Iterator[Read]:
    """Yields the pool's rows, as train rows of the job. Raises `SpecError` for what is no rows."""
    knobs = {"train": source, "validation": None, "test": None}
    prepare = spec.prepare.model_copy(update=knobs)
    try:
        yield from Reader(spec.model_copy(update={"prepare": prepare})).rows()
    except SpecError as error:
        raise SpecError(str(error).replace("prepare.train", "--pool", 1)) from None


def _plans(spec: JobSpec, store: Store) -> Iterator[RequestPlan]:
    """Yields what the ledger of each teacher holds. Nobody is asked."""
    for job in each_job(spec).values():
        if job.generate.mode == "answer":
            folder = store.ledger(ledger_name(request_context(job)))
            ledger = Ledger(folder, engine_of(job).parse)
            ledger.load()
            if len(ledger):
                yield RequestPlan(job, ledger)


def _line(raw: SourceRow) -> bytes:
    """Returns a row as a line of JSON: its own bytes, where these are one."""
    is_line = raw.raw.startswith(b"{") and b"\n" not in raw.raw
    return (raw.raw if is_line else dumped(raw.value)) + b"\n"
