"""What of `prepare` can fail later, checked before a run: names of plug-ins, and the first rows."""

from retort.data import sources, task_types
from retort.errors import SpecError
from retort.plugins import check_function
from retort.records import SPLITS
from retort.spec import JobSpec
from retort.stages.prepare.rows import Reader, preview

# Rows of each file that are looked at before a run; prepare reads them all.
PREVIEW_ROWS = 10_000


def check(spec: JobSpec) -> list[str]:
    """Returns a line for each thing that was checked and is well.

    Raises `SpecError` or `DataError` for the first that is not.
    """
    task_types.load(spec.prepare.task_type)
    for name in spec.prepare.scrub:
        check_function("scrubber", name, "retort.data.scrubbers")
    if spec.prepare.format != "auto":
        check_function("format", spec.prepare.format, "retort.data.formats")
    return [f"task type {spec.prepare.task_type}", *_check_data(spec)]


def _check_data(spec: JobSpec) -> list[str]:
    counts, recognised, longer = preview(spec, PREVIEW_ROWS)
    _check_labels(spec)
    _check_gold(spec)
    lines = []
    for split in SPLITS:
        if spec.prepare.has(split):
            origin = sources.describe(getattr(spec.prepare, split) or spec.prepare.train)
            some = f" of the first {PREVIEW_ROWS:,}" if split in longer else ""
            lines.append(
                f"prepare.{split} {origin}: {counts.examples[split]:,} good rows{some}, "
                f"{counts.expected[split]:,} with an expected answer"
            )
    forms = ", ".join(f"{count:,} as {form}" for form, count in recognised.most_common())
    lines.append(f"rows recognised: {forms}")
    if counts.num_bad:
        lines.append(
            f"{counts.num_bad} bad rows would be quarantined, the first: {counts.first_bad}"
        )
    return lines


def _check_labels(spec: JobSpec) -> None:
    """Raises `SpecError` when labels are to be learned but no train row has any.

    It reads up to the first row that has, so all rows only where it refuses.
    """
    if all(loss.name != "label_distribution" for loss in spec.losses):
        return
    found = (r.example for r in Reader(spec).rows() if r.split == "train" and r.example)
    if not any(example.options for example in found):
        raise SpecError(
            "train.losses: label_distribution learns which answer of a closed set the teacher "
            f"prefers, but no train row of task type {spec.prepare.task_type} has such a set. It "
            "is for nli, and for qa where rows have choices or prepare.labels says which answers "
            "there are; set those, or name another loss"
        )


def _check_gold(spec: JobSpec) -> None:
    """Raises `SpecError` when the control gold has no train row's own answer to learn.

    It reads up to the first row that has one. Where the teacher answers turn by turn, a row of
    several turns is not learned: its own answer follows its own replies, not the teacher's.
    """
    if "gold" not in spec.controls:
        return
    turns, is_chat = spec.generate.turns, spec.prepare.task_type == "conversation"
    by_turn = turns == "all" or (turns == "auto" and is_chat)
    for example in (r.example for r in Reader(spec).rows() if r.split == "train"):
        if example is None or (example.reference is None and example.expected is None):
            continue
        roles = [message["role"] for message in example.messages]
        replied = "tool" not in roles and "assistant" in roles[roles.index("user") :]
        if not (by_turn and replied):
            return
    raise SpecError(
        "train.controls: gold learns the rows' own answers, but no train row has one"
        f"{' after a single turn' if by_turn else ''}; give the rows answers, or take gold out of "
        "train.controls"
    )
