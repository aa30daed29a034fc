"""prepare: from the user's rows to examples, without copies and leaks.

The rows are read once and kept on the local disk meanwhile; in memory are only hashes of them.
Bad and removed rows are stored beside the examples, with their reasons.
"""

from retort.errors import DataError
from retort.records import SPLITS, JsonObject, write_lines
from retort.spec import JobSpec
from retort.stages.prepare.rows import Counts, Reader, check_counts, new_counts, quarantined
from retort.stages.prepare.selection import Selection
from retort.stages.stage import Stage

SAY_EVERY_ROWS = 20_000


def prepare(stage: Stage) -> JsonObject:
    """Writes the examples of each split, the bad rows and the removed rows; returns the counts.

    Raises `DataError` when too many rows are bad or a required split is empty.
    """
    reader, selection = Reader(stage.spec), Selection(stage.spec)
    try:
        counts = _read(stage, reader, selection)
        check_counts(stage.spec, counts)
        selection.choose()
        check_left(stage.spec, selection)
        facts = _facts(stage, counts, reader, selection)
        _write(stage, selection)
        _say(stage, facts)
        for loss in selection.losses():
            stage.report.note(loss)
    finally:
        selection.close()
    return facts


def check_left(spec: JobSpec, selection: Selection) -> None:
    """Raises `DataError` when every row of a split was removed."""
    for split in SPLITS:
        if spec.prepare.has(split) and not selection.kept(split):
            report = next(selection.reports(split))
            raise DataError(
                f"prepare.{split}: no row is left; every row is a copy or a leak of a held-out "
                f"row, the first: {report.file}:{report.line} is a {report.reason} "
                f"({report.other}). Give files that differ, or change prepare.deduplicate or "
                "prepare.decontaminate"
            )


def _read(stage: Stage, reader: Reader, selection: Selection) -> Counts:
    """Reads all rows once and writes the bad ones to quarantine."""
    counts, bad = new_counts(), []
    for number, read in enumerate(reader.rows(), start=1):
        counts.add(read)
        if read.example:
            selection.add(read)
        elif not read.is_left_out:
            bad.append(write_lines([quarantined(read)]))
        if number % SAY_EVERY_ROWS == 0:
            stage.report.progress(number, number, "rows", "reading")
    selection.add_all_foreign(reader)
    for line in counts.of_traffic(bool(stage.spec.prepare.scrub)):
        stage.report.note(line)
    if bad:
        stage.out.write("quarantine.jsonl", b"".join(bad))
        stage.report.note(f"{len(bad)} rows in quarantine, the first: {counts.first_bad}")
    return counts


def _write(stage: Stage, selection: Selection) -> None:
    size = stage.spec.prepare.shard_size
    for split in SPLITS:
        kept = selection.kept(split)
        for start in range(0, len(kept), size):
            lines = [selection.line(split, index) for index in kept[start : start + size]]
            stage.out.write(f"{split}-{start // size:05d}.jsonl", b"".join(lines))
    if removed := [write_lines([report]) for report in selection.reports(*SPLITS)]:
        stage.out.write("removed.jsonl", b"".join(removed))


def _facts(stage: Stage, counts: Counts, reader: Reader, selection: Selection) -> JsonObject:
    kept = {split: selection.kept(split) for split in SPLITS if counts.examples[split]}
    return {
        "num_rows": dict(counts.rows),
        "num_quarantined": counts.num_bad,
        "quarantine_reasons": dict(counts.reasons.most_common(20)),
        **({"left_out": dict(counts.left_out)} if counts.left_out else {}),
        **selection.counts(),
        "num_examples": {split: len(rows) for split, rows in kept.items()},
        "num_expected": dict(counts.expected),
        "num_scrubbed": reader.num_scrubbed,
        "recognised": dict(reader.recognised.most_common()),
    }


def _say(stage: Stage, facts: JsonObject) -> None:
    """Notes which formats were recognised and how many rows were removed."""
    total = sum(facts["num_rows"].values())
    stage.report.progress(total, total, "rows")
    formats = ", ".join(f"{count:,} {name}" for name, count in facts["recognised"].items())
    removed = {
        "copies": facts["num_duplicates"],
        "near copies": facts["num_near_duplicates"],
        "leaks of held-out rows": facts["num_contaminated"],
        "left out by balance or limit": facts["num_left_out"],
    }
    parts = [f"{count:,} {what}" for what, count in removed.items() if count]
    stage.report.note(f"recognised {formats}" + (f"; {', '.join(parts)}" if parts else ""))
