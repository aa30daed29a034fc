"""The check of `prepare` before a run: names of plug-ins, and the first rows of each file."""

from collections import Counter
from itertools import islice

from retort.data import chat_templates, sources, task_types, token_bytes
from retort.engines import find_engine, resolve
from retort.errors import SpecError
from retort.metrics import graders
from retort.metrics.graders import templates
from retort.plugins import check_function
from retort.records import SPLITS, Example
from retort.spec import JobSpec
from retort.stages.prepare.rows import Read, Reader, preview
from retort.stages.prepare.selection import Selection
from retort.stages.stage import held_out_split
from retort.stages.teachers import each_job, teacher_of
from retort.store import model_folder

# Rows of each source that are read before a run; prepare reads all.
PREVIEW_ROWS = 10_000
# Train prompts whose tokens are counted if train.max_length is below so many tokens.
COUNTED_ROWS, LONG = 500, 512
# Rows that are put through the chat templates.
RENDERED_ROWS = 2_000


def check(spec: JobSpec) -> list[str]:
    """Returns a line for each successful check. Raises `SpecError` or `DataError` for a fault."""
    task_types.load(spec.prepare.task_type)
    for name in spec.prepare.scrub:
        check_function("scrubber", name, "retort.data.scrubbers")
    if spec.prepare.format != "auto":
        check_function("format", spec.prepare.format, "retort.data.formats")
    return [f"task type {spec.prepare.task_type}", *_check_data(spec)]


def _check_data(spec: JobSpec) -> list[str]:
    selection, some_examples = Selection(spec), list[Example]()
    route, shares = spec.generate.route, Counter[str]()

    def take(read: Read) -> None:
        selection.add(read)
        if route and route.key and read.example and read.split != "test":
            shares[teacher_of(route, read.example)] += 1
        if read.example and len(some_examples) < RENDERED_ROWS:
            some_examples.append(read.example)

    try:
        counts, recognised, longer = preview(spec, PREVIEW_ROWS, take)
        losses = [] if longer else _losses(spec, selection)
    finally:
        selection.close()
    _check_labels(spec)
    _check_gold(spec)
    graded = _check_graders(spec)
    _check_length(spec)
    lines = []
    for split in SPLITS:
        if spec.prepare.has(split):
            origin = sources.describe(getattr(spec.prepare, split) or spec.prepare.train)
            some = f" of the first {PREVIEW_ROWS:,}" if split in longer else ""
            lines.append(
                f"prepare.{split} {origin}: {counts.examples[split]:,} good rows{some}, "
                f"{counts.expected[split]:,} with an expected answer"
            )
    formats = ", ".join(f"{count:,} as {name}" for name, count in recognised.most_common())
    lines.append(f"rows recognised: {formats}")
    if counts.num_bad:
        lines.append(
            f"{counts.num_bad} bad rows would be quarantined, the first: {counts.first_bad}"
        )
    lines += counts.of_traffic(bool(spec.prepare.scrub))
    for name in route.order if shares and route else ():
        lines.append(f"teacher {name}: answers {shares[name] / shares.total():.0%} of these rows")
    told = [*losses, *_refused_chats(spec, some_examples), *_by_bytes(spec, some_examples)]
    return [*lines, *graded, *told]


def _refused_chats(spec: JobSpec, examples: list[Example]) -> list[str]:
    """Returns a line for each reason for which the teacher's or the student's chat template refuses
    some of the first rows."""
    teachers = {
        f"generate.teachers.{name}" if name else "generate.teacher": own.generate.teacher
        for name, own in each_job(spec).items()
        if not find_engine(resolve(own.generate.engine, 0)).REMOTE
    }
    models = {**teachers, "train.student": spec.base}
    lines = []
    for where, model in models.items():
        template = model_folder.chat_template(model_folder.locate(model, where))
        refused = chat_templates.refusals(template, examples) if template else None
        for reason, number in (refused or {}).items():
            done = "not answer" if where in teachers else "neither learn nor answer"
            lines.append(
                f"{where}: its chat template refuses {number:,} of the first {len(examples):,} "
                f"rows ({reason}); it will {done} them"
            )
    return lines


def _by_bytes(spec: JobSpec, examples: list[Example]) -> list[str]:
    """Returns a line on tokens that begin together, where the signal is learned by bytes.

    It is measured on what the user says in the first rows, and on their own answers.
    """
    if not spec.distils or find_engine(resolve(spec.generate.engine, 0)).REMOTE:
        return []
    teacher = model_folder.locate(spec.generate.teacher, "generate.teacher")
    student = model_folder.locate(spec.base, "train.student")
    if model_folder.token_map(teacher)[0] == model_folder.token_map(student)[0]:
        return []
    some = examples[:COUNTED_ROWS]
    texts = [str(e.messages[-1]["content"]) for e in some] + [e.reference or "" for e in some]
    try:
        share = token_bytes.share_aligned(teacher, student, texts)
    except SpecError:  # train's check says what to do
        return []
    return [
        f"tokens: {share:.1%} of the student's begin where one of the teacher's does, in the first "
        f"{len(some):,} rows"
    ]


def _losses(spec: JobSpec, selection: Selection) -> list[str]:
    """Returns what to say of files that lose many rows as copies and leaks."""
    selection.add_all_foreign(Reader(spec))
    selection.find_repeats()
    return list(selection.losses())


def _check_graders(spec: JobSpec) -> list[str]:
    """Returns a line for each column that a grader names and some held-out rows lack. Raises
    `SpecError` for one that all of the first rows lack."""
    if spec.evaluate.graders is None:
        return []
    wanted = graders.item_variables(graders.read(spec.evaluate.graders.file))
    split = held_out_split(spec)
    rows = (r.example for r in Reader(spec).rows() if r.split == split and r.example)
    items = [templates.item_of(example) for example in islice(rows, COUNTED_ROWS)]
    lines = []
    for name, grader in wanted.items():
        number = sum(name not in item for item in items)
        if items and number == len(items):
            known = ", ".join(dict.fromkeys(key for item in items for key in item))
            raise SpecError(
                f"evaluate.graders: grader '{grader}' names {{{{item.{name}}}}}, which no row of "
                f"prepare.{split} has; known: {known}. A column of the rows is kept by "
                f"prepare.keep_columns: [{name}]; else name another in the graders' file"
            )
        if number:
            lines.append(
                f"grader '{grader}' names {{{{item.{name}}}}}, which {number:,} of the first "
                f"{len(items):,} rows of prepare.{split} lack; it will not score these"
            )
    return lines


def _check_length(spec: JobSpec) -> None:
    """Raises `SpecError` if the first train rows are all too long to be learned.

    Prompts are counted without their template and answers, so no row is shorter than that.
    """
    longest = spec.train.max_length
    if longest >= LONG:
        return
    path = model_folder.locate(spec.base, "train.student") / "tokenizer.json"
    examples = (r.example for r in Reader(spec).rows() if r.split == "train" and r.example)
    texts = [
        "\n".join(str(turn["content"]) for turn in example.messages)
        for example in islice(examples, COUNTED_ROWS)
    ]
    if not (path.is_file() and texts):
        return
    from tokenizers import Tokenizer

    encoded = Tokenizer.from_file(str(path)).encode_batch(texts, add_special_tokens=False)
    shortest = min(len(one.ids) for one in encoded)
    if shortest >= longest:
        raise SpecError(
            f"train.max_length: {longest}; the shortest of the first {len(texts):,} train prompts "
            f"has {shortest} tokens, without its answer, so no row could be learned; raise it"
        )


def _check_labels(spec: JobSpec) -> None:
    """Raises `SpecError` if the loss label_distribution is named but no train row has labels.

    Rows are read up to the first with labels.
    """
    if all(loss.name != "label_distribution" for loss in spec.losses):
        return
    examples = (r.example for r in Reader(spec).rows() if r.split == "train" and r.example)
    if not any(example.options for example in examples):
        raise SpecError(
            "train.losses: label_distribution learns which answer of a closed set the teacher "
            f"prefers, but no train row of task type {spec.prepare.task_type} has such a set. Use "
            "it with nli, or with qa whose rows have choices or whose answers are listed in "
            "prepare.labels; or name another loss"
        )


def _check_gold(spec: JobSpec) -> None:
    """Raises `SpecError` if the control gold is named but no train row has an answer of its own.

    Rows are read up to the first with one. If the teacher answers turn by turn, rows of several
    turns do not count: their own answers follow their own replies, not the teacher's.
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
        f"{' after a single turn' if by_turn else ''}; add answers, or remove gold from "
        "train.controls"
    )
