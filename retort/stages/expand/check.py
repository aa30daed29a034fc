"""The check of `expand` before a run: the writer, and whether there is anything to write."""

from itertools import islice

from retort.data import sources
from retort.errors import SpecError
from retort.spec import JobSpec
from retort.stages import judge
from retort.stages.expand.agreement import is_verified


def check(spec: JobSpec) -> list[str]:
    """Returns a line on what would be written, and one on the writer. Raises `SpecError`."""
    knobs = spec.expand
    if knobs is None:
        return []
    rows = sources.read(spec.prepare.train, "prepare.train", spec.prepare.max_row_bytes)
    number = sum(1 for _ in islice(rows, knobs.to))
    if number >= knobs.to:
        raise SpecError(
            f"expand.to: {knobs.to:,} rows, and prepare.train has that many already; give a number "
            "above its rows, or take the section expand out"
        )
    who = "the teacher" if knobs.writer is None else knobs.writer.model
    verified = f", those stay that it answers alike {knobs.samples} times" * is_verified(spec)
    line = f"expand: {who} writes from {number:,} rows to {knobs.to:,} by {', '.join(knobs.by)}"
    return [line + verified.replace(" it ", " the teacher "), *judge.check(spec, "expand")]
