"""From the user's rows, in any format, to examples, one row at a time.

A bad row is yielded with its reason and its bytes, and reading goes on after it. A row of logged
traffic that cannot be asked is no bad one: it is left out, and counted.
"""

import base64
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from retort.data import sources, task_types
from retort.data.balance import share
from retort.data.duplicates.asked import text_of_prompt, texts_of_row
from retort.data.formats import find_format, read_row, recognise
from retort.data.sources import SourceRow
from retort.errors import DataError, SpecError
from retort.plugins import find_function, module_names
from retort.records import (
    SPLITS,
    Example,
    JsonObject,
    Message,
    Prompt,
    Quarantined,
    Row,
    Split,
    content_id,
    write_lines,
)
from retort.spec import JobSpec

# Held-out rows come first: a train row that repeats one of them is removed, not the reverse.
ORDER: tuple[Split, ...] = ("test", "validation", "train")
# The parts of a turn that are no text.
NAMES = ("role", "tool_call_id")


@dataclass(frozen=True)
class Read:
    """One row: its example, or the reason why it has none.

    `text` is the text by which rows are compared, and `short` its short parts: rows that differ in
    one of them ask different things. `line` is the example as it is stored.
    """

    raw: SourceRow
    split: Split
    example: Example | None = None
    text: str = ""
    short: tuple[str, ...] = ()
    line: bytes = b""
    reason: str | None = None

    @property
    def is_left_out(self) -> bool:
        """Whether the row is one of logged traffic that cannot be asked, or shall not be."""
        return self.example is None and self.raw.group is not None


class Reader:
    """Reads the rows of a job, and keeps the ids and counts of the formats that it has read."""

    def __init__(self, spec: JobSpec):
        self._knobs = spec.prepare
        self._kind = task_types.load(spec.prepare.task_type)
        task_types.check_labels(spec.prepare.labels)
        if spec.prepare.format != "auto":
            find_format(spec.prepare.format)
        self._is_built_in = spec.prepare.task_type in module_names(task_types)
        self._scrubbers = [
            find_function("scrubber", name, "retort.data.scrubbers") for name in spec.prepare.scrub
        ]
        self._ids: dict[str, Split] = {}
        self._groups: dict[str, Split] = {}
        self.recognised: Counter[str] = Counter()
        self.num_read: Counter[Split] = Counter()
        self.num_scrubbed = 0

    def rows(self, most: int | None = None) -> Iterator[Read]:
        """Yields every row, or the first `most` of each source, held-out splits first."""
        for split in ORDER:
            source = getattr(self._knobs, split)
            if source is not None:
                rows = sources.read(source, f"prepare.{split}", self._knobs.max_row_bytes)
                for raw in islice(rows, most):
                    self.num_read[split] += 1
                    yield self._read(raw, split)

    def texts(self, source: str) -> Iterator[tuple[SourceRow, str]]:
        """Yields the rows of a file that must not be learned, with each text to compare."""
        where = "prepare.decontaminate.against"
        for raw in sources.read(source, where, self._knobs.max_row_bytes):
            if raw.value is not None:
                yield from ((raw, text) for text in texts_of_row(raw.value))

    def _read(self, raw: SourceRow, split: Split) -> Read:
        if raw.value is None:
            return Read(raw, split, reason=raw.error)
        try:
            name, row = read_row(raw.value, self._format(raw.value), self._knobs.columns)
            row = self._scrubbed(row) if self._scrubbers else row
            prompt = self._kind.prompt(row, self._knobs)
            text, short = text_of_prompt(prompt)
            split = self._split(split, raw.group or content_id(prompt.messages))
            if raw.group and self._groups.setdefault(raw.group, split) != split:
                return Read(raw, split, reason=f"of a conversation in {self._groups[raw.group]}")
            example = self._example(row, prompt, split)
            line = write_lines([example])
        except KeyError as error:  # a task type of the user's own
            return Read(raw, split, reason=f"no column {error}")
        except (ValueError, TypeError) as error:  # orjson's TypeError: it cannot be stored
            return Read(raw, split, reason=str(error))
        except (AttributeError, LookupError, RecursionError) as error:
            return Read(raw, split, reason=f"{type(error).__name__}: {error}")
        self._ids[example.id] = split
        self.recognised[name] += 1
        return Read(raw, split, example, text, short, line)

    def _format(self, value: JsonObject) -> str:
        """Returns the format of a row; the user's own task types read any columns."""
        if self._knobs.format == "auto" and not self._is_built_in:
            try:
                recognise(value)
            except ValueError:
                return "columns"
        return self._knobs.format

    def _example(self, row: Row, prompt: Prompt, split: Split) -> Example:
        messages = prompt.messages
        if self._knobs.system_prompt and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._knobs.system_prompt}, *messages]
        columns = self._knobs.keep_columns
        kept = {name: row.fields[name] for name in columns if name in row.fields}
        return Example(
            id=self._id(row, messages, split),
            split=split,
            messages=messages,
            expected=prompt.expected,
            reference=prompt.reference,
            tools=row.tools,
            metadata={**kept, **row.metadata},
            options=prompt.options,
            answers=prompt.answers,
        )

    def _id(self, row: Row, messages: list[Message], split: Split) -> str:
        """Returns a unique id: the row's own, or the hash of its content.

        An id that occurs in another split too gets a prefix, as the ids of different files often
        count from 0 each. Raises `ValueError` for an own id that occurs twice in a split.
        """
        identity = row.id if row.id is not None else content_id(messages)
        used_in = self._ids.get(identity)
        if used_in is None:
            return identity
        if used_in != split and f"{split}/{identity}" not in self._ids:
            return f"{split}/{identity}"
        if row.id is not None:
            raise ValueError(f"an id used twice in prepare.{split}: {identity}")
        number = 2
        while f"{identity}-{number}" in self._ids:
            number += 1
        return f"{identity}-{number}"

    def _split(self, split: Split, key: str) -> Split:
        """Returns the split of a row; by its content, or its conversation, a train row may be held
        out."""
        validation, test = self._knobs.validation_ratio, self._knobs.test_ratio
        if split != "train" or not (validation or test):
            return split
        place = share(key)
        return "test" if place < test else "validation" if place < test + validation else "train"

    def _scrubbed(self, row: Row) -> Row:
        """Returns a row with all its texts scrubbed."""
        messages = row.messages and [
            {key: value if key in NAMES else self._scrub(value) for key, value in message.items()}
            for message in row.messages
        ]
        fields = {key: self._scrub(value) for key, value in row.fields.items()}
        if messages != row.messages or fields != row.fields:
            self.num_scrubbed += 1
        return Row(messages, fields, row.id, row.tools, self._scrub(row.metadata))

    def _scrub(self, value: Any) -> Any:
        if isinstance(value, str):
            for scrub in self._scrubbers:
                value = scrub(value)
        elif isinstance(value, list):
            return [self._scrub(item) for item in value]
        elif isinstance(value, dict):
            return {key: self._scrub(item) for key, item in value.items()}
        return value


def quarantined(read: Read) -> Quarantined:
    """Returns the record of a bad row, with its bytes."""
    raw, reason = read.raw, read.reason or ""
    try:
        return Quarantined(raw.file, raw.line, reason, raw.raw.decode())
    except UnicodeDecodeError:
        text = base64.b64encode(raw.raw).decode()
        return Quarantined(raw.file, raw.line, reason, text, "base64")


@dataclass
class Counts:
    """Counts of the rows that were read: rows and examples by split, and the bad rows; those of
    logged traffic that are left out are none of them, and counted by themselves."""

    rows: Counter[Split]
    examples: Counter[Split]
    expected: Counter[Split]
    reasons: Counter[str]
    first_bad: str = ""
    left_out: Counter[str] = field(default_factory=Counter)
    num_calls: int = 0

    def add(self, read: Read) -> None:
        """Counts one row."""
        self.num_calls += read.raw.group is not None
        if read.is_left_out:
            self.left_out[kind_of(read.reason or "")] += 1
            return
        self.rows[read.split] += 1
        if read.example:
            self.examples[read.split] += 1
            self.expected[read.split] += read.example.expected is not None
        else:
            self.first_bad = self.first_bad or f"{read.raw.file}:{read.raw.line}: {read.reason}"
            self.reasons[kind_of(read.reason or "")] += 1

    @property
    def num_bad(self) -> int:
        """The number of bad rows."""
        return sum(self.reasons.values())

    def of_traffic(self, is_scrubbed: bool) -> list[str]:
        """Returns what to say of logged traffic: what is left out, and that it is private."""
        reasons = ", ".join(f"{number:,} {why}" for why, number in self.left_out.most_common())
        lines = [f"left out of logged traffic: {reasons}"] if reasons else []
        if self.num_calls and not is_scrubbed:
            lines.append(
                "warning: logged traffic often holds personal data, and prepare.scrub is empty"
            )
        return lines


def new_counts() -> Counts:
    """Returns empty counts."""
    return Counts(Counter(), Counter(), Counter(), Counter())


def kind_of(reason: str) -> str:
    """Returns the general part of a reason, which is counted: the text before the details."""
    return re.split("[:;]", reason)[0][:80]


def preview(
    spec: JobSpec, most: int, take: Callable[[Read], None] | None = None
) -> tuple[Counts, Counter[str], set[Split]]:
    """Returns the counts of the first rows of each source, their formats, and the splits that have
    more rows; `take` is given each good row.

    Raises `SpecError` or `DataError` when the job cannot run on them.
    """
    counts, reader = new_counts(), Reader(spec)
    for read in reader.rows(most):
        counts.add(read)
        if take and read.example:
            take(read)
    longer = {split for split, number in reader.num_read.items() if number == most}
    check_counts(spec, counts, whole=not longer)
    return counts, reader.recognised, longer


def check_counts(spec: JobSpec, counts: Counts, whole: bool = True) -> None:
    """Raises `DataError` when too many rows are bad or a required split is empty."""
    knobs, total = spec.prepare, sum(counts.rows.values())
    if counts.num_bad > knobs.max_bad_ratio * total and (whole or counts.num_bad == total):
        raise DataError(
            f"{counts.num_bad} of {total} rows are bad, more than prepare.max_bad_ratio="
            f"{knobs.max_bad_ratio:g} allows; the first: {counts.first_bad}. Correct the rows, or "
            "raise the ratio to go on without them"
        )
    for split in SPLITS:
        if knobs.has(split) and not counts.examples[split] and whole:
            if getattr(knobs, split) is None:
                raise DataError(
                    f"prepare.{split}_ratio: {getattr(knobs, f'{split}_ratio'):g} of {total} rows "
                    f"holds out no row; raise it, or give a file as prepare.{split}"
                )
            why = "; ".join(counts.of_traffic(True))
            raise DataError(
                f"prepare.{split}: {sources.describe(getattr(knobs, split))} holds no usable row; "
                + (why or "give JSON lines with an object each, or a table with a heading")
            )
    if not (knobs.has("test") or knobs.has("validation")):
        raise SpecError(
            "prepare.test: missing, and there is no prepare.validation to compare the models on; "
            "give a file that the student is not trained on, or set prepare.test_ratio: 0.1"
        )
