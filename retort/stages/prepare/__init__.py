"""prepare: the user's rows to examples, and only those worth asking.

One pass over the rows, which lie on the local disk meanwhile: a million of them need no more
memory than their fingerprints. What is not asked is kept beside the examples, with the reason.
"""

from typing import Any

from retort.errors import DataError
from retort.records import SPLITS, write_lines
from retort.spec import JobSpec
from retort.stages.prepare.rows import Counts, Reader, check_counts, new_counts, quarantined
from retort.stages.prepare.selection import Selection
from retort.stages.stage import Stage

SAY_EVERY_ROWS = 20_000


def prepare(stage: Stage) -> dict[str, Any]:
    """Writes the examples of each split, the bad rows and the removed ones; returns the counts.

    Raises `DataError` when too many rows are bad or a split that is needed has none.
    """
    reader, selection = Reader(stage.spec), Selection(stage.spec)
    try:
        counts = _read(stage, reader, selection)
        check_counts(stage.spec, counts)
        selection.choose()
        check_left(stage.spec, selection)
        facts = _facts(stage, counts, reader, selection)
        _write(stage, selection)
    finally:
        selection.close()
    _say(stage, facts)
    return facts


def check_left(spec: JobSpec, selection: Selection) -> None:
    """Raises `DataError` when every row of a split was removed."""
    for split in SPLITS:
        if spec.prepare.has(split) and not selection.standing(split):
            report = next(selection.reports(split))
            raise DataError(
                f"prepare.{split}: nothing is left of it; every row is a copy or stands in the "
                f"held-out rows too, the first: {report.file}:{report.line} is a {report.reason} "
                f"({report.other}). Give files that differ, or see prepare.deduplicate and "
                "prepare.decontaminate"
            )


def _read(stage: Stage, reader: Reader, selection: Selection) -> Counts:
    """Reads all rows once; bad ones go to quarantine."""
    counts, bad = new_counts(), []
    for number, read in enumerate(reader.rows(), start=1):
        counts.add(read)
        if read.example:
            selection.add(read)
        else:
            bad.append(write_lines([quarantined(read)]))
        if number % SAY_EVERY_ROWS == 0:
            stage.report.progress(number, number, "rows", "reading")
    for source in stage.spec.prepare.decontaminate.against:
        for raw, text in reader.texts(source):
            selection.add_foreign(raw, text)
    if bad:
        stage.out.write("quarantine.jsonl", b"".join(bad))
        stage.report.note(f"{len(bad)} rows in quarantine, the first: {counts.first_bad}")
    return counts


def _write(stage: Stage, selection: Selection) -> None:
    size = stage.spec.prepare.shard_size
    for split in SPLITS:
        chosen = selection.standing(split)
        for start in range(0, len(chosen), size):
            lines = [selection.line(split, index) for index in chosen[start : start + size]]
            stage.out.write(f"{split}-{start // size:05d}.jsonl", b"".join(lines))
    if removed := [write_lines([report]) for report in selection.reports(*SPLITS)]:
        stage.out.write("removed.jsonl", b"".join(removed))


def _facts(stage: Stage, counts: Counts, reader: Reader, selection: Selection) -> dict[str, Any]:
    asked = {split: selection.standing(split) for split in SPLITS if counts.examples[split]}
    return {
        "num_rows": dict(counts.rows),
        "num_quarantined": counts.num_bad,
        "quarantine_reasons": dict(counts.reasons.most_common(20)),
        **selection.counts(),
        "num_examples": {split: len(chosen) for split, chosen in asked.items()},
        "num_expected": dict(counts.expected),
        "num_scrubbed": reader.num_scrubbed,
        "recognised": dict(reader.recognised.most_common()),
    }


def _say(stage: Stage, facts: dict[str, Any]) -> None:
    """Says what was recognised and what became of the rows."""
    total = sum(facts["num_rows"].values())
    stage.report.progress(total, total, "rows")
    forms = ", ".join(f"{count:,} {form}" for form, count in facts["recognised"].items())
    gone = {
        "copies": facts["num_duplicates"],
        "near copies": facts["num_near_duplicates"],
        "leaks of held-out rows": facts["num_contaminated"],
        "left out by balance or limit": facts["num_left_out"],
    }
    parts = [f"{count:,} {what}" for what, count in gone.items() if count]
    stage.report.note(f"recognised {forms}" + (f"; {', '.join(parts)}" if parts else ""))
