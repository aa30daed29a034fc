"""Selects the rows to ask: without copies, without leaks of held-out rows, balanced and limited.

The rows themselves are in a temporary file; in memory are only numbers about them.
"""

from __future__ import annotations

import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import orjson

from retort.data import balance, task_types
from retort.data.duplicates import (
    DuplicatePair,
    Texts,
    find_duplicates,
    find_leaks,
    normal_words,
)
from retort.data.sources import SourceRow
from retort.records import SPLITS, Example, JsonObject, Removed, Split, chat_text, content_id
from retort.spec import JobSpec, Prepare
from retort.spec.prepare import Deduplicate
from retort.stages.prepare.rows import Read, Reader

SHOWN_CHARACTERS = 2000
EXACT_ONLY = Deduplicate(near=False)
# A file that loses more of its rows than this is spoken of, with so many pairs and characters.
MUCH_LOST, MOST_PAIRS, MAX_SHOWN = 0.1, 5, 90
KNOBS = {
    "exact": "prepare.deduplicate.exact=false",
    "near": "prepare.deduplicate.near=false",
    "leak": "prepare.decontaminate.enabled=false",
}


class Spool:
    """Lines in a temporary file, read by their number."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="retort-")  # noqa: SIM115 - see close()
        self._ends = array("Q", [0])

    def add(self, line: bytes) -> int:
        """Adds a line and returns its number."""
        self._file.write(line)
        self._ends.append(self._ends[-1] + len(line))
        return len(self._ends) - 2

    def read(self, number: int) -> bytes:
        """Returns a line."""
        start, end = self._ends[number], self._ends[number + 1]
        self._file.seek(start)
        return self._file.read(end - start)

    def close(self) -> None:
        """Deletes the file."""
        self._file.close()


@dataclass
class RowColumns:
    """The rows of one split, or of the files that must not be learned, as columns."""

    texts: Texts = field(default_factory=Texts)
    numbers: array[int] = field(default_factory=lambda: array("Q"))
    lines: array[int] = field(default_factory=lambda: array("Q"))
    files: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)


class Selection:
    """All rows of a job, and which of them are removed for which reasons."""

    def __init__(self, spec: JobSpec):
        self._knobs = spec.prepare
        # Of a summary there are many right ones: another one makes no other question.
        kind = task_types.load(spec.prepare.task_type)
        self._has_right_answers = task_types.metrics_of(kind)[0] == "accuracy"
        self._spool = Spool()
        # Clusters need all rows first.
        by = spec.prepare.balance.by
        self._by = "auto" if by == "cluster" else by
        self.rows: dict[str, RowColumns] = {}
        self.removed: dict[str, dict[int, DuplicatePair]] = {}
        self._against: dict[tuple[str, int], str] = {}
        self._left_out: set[int] = set()

    def add(self, read: Read) -> None:
        """Adds a good row."""
        example = read.example
        assert example
        rows = self.rows.setdefault(read.split, RowColumns())
        short = ["".join(normal_words(part)) for part in read.short]
        scope = content_id([example.tools, *_system(example), *short])
        rows.texts.add(read.text, scope, example.expected if self._has_right_answers else None)
        rows.numbers.append(self._spool.add(read.line))
        rows.lines.append(read.raw.line)
        rows.files.append(read.raw.file)
        rows.ids.append(example.id)
        rows.groups.append(balance.group_of(example, self._by))

    def add_all_foreign(self, reader: Reader) -> None:
        """Adds the rows of the files that must not be learned."""
        for source in self._knobs.decontaminate.against:
            for raw, text in reader.texts(source):
                self.add_foreign(raw, text)

    def add_foreign(self, raw: SourceRow, text: str) -> None:
        """Adds a row of a file that must not be learned."""
        rows = self.rows.setdefault("against", RowColumns())
        rows.texts.add(text)
        rows.numbers.append(self._spool.add(text.encode(errors="ignore")[:SHOWN_CHARACTERS]))
        rows.lines.append(raw.line)
        rows.files.append(raw.file)

    def choose(self) -> None:
        """Finds the copies and leaks, and the rows that balance and limit leave out."""
        self.find_repeats()
        if "train" in self.rows:
            self._balance(self.rows["train"])

    def find_repeats(self) -> None:
        """Finds the copies and leaks."""
        for split, rows in self.rows.items():
            knobs = EXACT_ONLY if split == "test" else self._knobs.deduplicate
            pairs = find_duplicates(rows.texts, knobs) if split != "against" else []
            self.removed[split] = {pair.index: pair for pair in pairs}
        for split, held_out in _comparisons(self._knobs):
            self._remove_leaks(split, held_out)

    def _remove_leaks(self, split: Split, held_out: str) -> None:
        rows, other = self.rows.get(split), self.rows.get(held_out)
        if not (rows and other):
            return
        knobs = self._knobs.deduplicate
        matters = knobs.numbers_matter, knobs.words_matter
        for pair in find_leaks(rows.texts, other.texts, self._knobs.decontaminate, *matters):
            self.removed[split].setdefault(pair.index, pair)
            if self.removed[split][pair.index] is pair:
                self._against[split, pair.index] = held_out

    def _balance(self, rows: RowColumns) -> None:
        """Leaves out train rows beyond the cap of their group, then those beyond the limit."""
        knobs = self._knobs
        chosen = self.kept("train")
        if knobs.balance.by == "cluster":
            texts = [balance.text_of(self.example("train", index)) for index in chosen]
            for index, name in zip(
                chosen, balance.clusters(texts, knobs.balance.num_clusters)[0], strict=True
            ):
                rows.groups[index] = name
        for choose, most in ((balance.cap, knobs.balance.cap), (balance.pick, knobs.limit)):
            if most is not None:
                groups = [rows.groups[index] for index in chosen]
                ids = [rows.ids[index] for index in chosen]
                kept = choose(groups, ids, most)
                self._left_out |= {i for i, keep in zip(chosen, kept, strict=True) if not keep}
                chosen = [i for i, keep in zip(chosen, kept, strict=True) if keep]

    def kept(self, split: str) -> list[int]:
        """Returns the indices of the rows of a split that are kept, in order."""
        if split not in self.rows:
            return []
        removed = self.removed[split]
        left = self._left_out if split == "train" else set()
        return [i for i in range(len(self.rows[split].lines)) if i not in removed and i not in left]

    def line(self, split: str, index: int) -> bytes:
        """Returns a row's example as it is stored."""
        return self._spool.read(self.rows[split].numbers[index])

    def example(self, split: str, index: int) -> Example:
        """Returns a row's example."""
        return Example(**orjson.loads(self.line(split, index)))

    def reports(self, *splits: str) -> Iterator[Removed]:
        """Yields each copy and each leak in some splits, with the row that it repeats."""
        for split in splits:
            for index, pair in sorted(self.removed.get(split, {}).items()):
                yield self._report(split, index, pair)

    def _report(self, split: str, index: int, pair: DuplicatePair) -> Removed:
        where = self._against.get((split, index), split)
        rows, other = self.rows[split], self.rows[where]
        return Removed(
            file=rows.files[index],
            line=rows.lines[index],
            reason=_reason(pair, where),
            example=orjson.loads(self.line(split, index)),
            other=f"{other.files[pair.other]}:{other.lines[pair.other]}",
            other_text=self._text(where, pair.other)[:SHOWN_CHARACTERS],
            similarity=round(pair.similarity, 4),
        )

    def _text(self, split: str, index: int) -> str:
        if split == "against":
            return self._spool.read(self.rows[split].numbers[index]).decode(errors="ignore")
        return chat_text(self.example(split, index).messages[-1:])

    def losses(self) -> Iterator[str]:
        """Yields what to say of each file that loses more than a tenth of its rows as copies and
        leaks: how many, the five commonest pairs, and the knobs that keep such rows."""
        for split in SPLITS:
            rows, removed = self.rows.get(split), self.removed.get(split, {})
            by_file: dict[str, list[int]] = {}
            for index in removed:
                by_file.setdefault(rows.files[index] if rows else "", []).append(index)
            for file, indices in by_file.items():
                total = rows.files.count(file) if rows else 0
                if len(indices) > MUCH_LOST * total:
                    yield from self._loss(split, file, total, indices)

    def _loss(self, split: str, file: str, total: int, indices: list[int]) -> Iterator[str]:
        places = {index: self._against.get((split, index), split) for index in indices}
        pairs = {index: self.removed[split][index] for index in indices}
        reasons = Counter(_reason(pairs[index], places[index]) for index in indices)
        counts = ", ".join(f"{count:,} as {reason}" for reason, count in reasons.most_common())
        knobs = dict.fromkeys(KNOBS[pairs[index].kind] for index in indices)
        yield (
            f"prepare.{split}: {len(indices):,} of {total:,} rows of {file} are removed ({counts});"
            f" to keep them: --set {', --set '.join(knobs)}; the commonest pairs:"
        )
        groups: dict[tuple[str, int], list[int]] = {}
        for index in indices:
            groups.setdefault((places[index], pairs[index].other), []).append(index)
        for (where, other), members in sorted(groups.items(), key=lambda g: -len(g[1]))[
            :MOST_PAIRS
        ]:
            kept, gone = self._text(where, other), self._text(split, members[0])
            reason = _reason(pairs[members[0]], where)
            yield f"  {len(members):,} x {_short(gone)} is a {reason} of {_short(kept)}"

    def counts(self) -> JsonObject:
        """Returns the number of rows removed for each reason, and the groups of those kept."""
        kinds = [pair.kind for pairs in self.removed.values() for pair in pairs.values()]
        groups = self.rows["train"].groups if "train" in self.rows else []
        return {
            "num_duplicates": kinds.count("exact"),
            "num_near_duplicates": kinds.count("near"),
            "num_contaminated": kinds.count("leak"),
            "num_left_out": len(self._left_out),
            "balance": balance.largest(
                balance.spread(groups[index] for index in self.kept("train"))
            ),
        }

    def close(self) -> None:
        """Deletes the temporary file."""
        self._spool.close()


def _reason(pair: DuplicatePair, where: str) -> str:
    return {"exact": "copy", "near": "near copy", "leak": f"leak of {where}"}[pair.kind]


def _short(text: str) -> str:
    """Returns a text in one line of printable characters, cut to some length."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return repr(line if len(line) <= MAX_SHOWN else f"{line[:MAX_SHOWN]}...")


def _comparisons(knobs: Prepare) -> Iterable[tuple[Split, str]]:
    """Returns each split with the rows that must not occur in it."""
    own: list[tuple[Split, str]] = [
        ("validation", "test"),
        ("train", "test"),
        ("train", "validation"),
    ]
    foreign: list[tuple[Split, str]] = [("validation", "against"), ("train", "against")]
    return [*(own if knobs.decontaminate.enabled else []), *foreign]


def _system(example: Example) -> list[str]:
    return [turn["content"] for turn in example.messages if turn["role"] == "system"]
