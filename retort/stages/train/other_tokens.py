"""Training rows of a teacher with another tokenizer: its signal, or the live teacher's own rows."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from retort.data import encoding, token_bytes
from retort.data.token_bytes import ByteOrder
from retort.errors import DataError
from retort.records import Decision, Example, Response, Split
from retort.spec import JobSpec
from retort.stages.stage import Stage, read_token_bytes
from retort.stages.train.alignment import learned
from retort.stages.train.batches import TrainingItem
from retort.stages.train.endpoint_teacher import is_remote
from retort.stages.train.translation import OtherTokens, Translator
from retort.store import model_folder
from retort.store.signals import Signal


@dataclass(frozen=True)
class ByBytes:
    """What is learned by bytes: the share of tokens with a distribution, and that of those that
    begin where one of the teacher's does; why rows have none, and what a live teacher needs."""

    share_known: float | None = None
    share_aligned: float | None = None
    text_alone: Counter[str] = field(default_factory=Counter)
    live: OtherTokens | None = None


def translator(
    stage: Stage, tokenizer: Any, table: int, end_ids: list[int], captured: str = "generate"
) -> Translator | None:
    """Returns the translator from the teacher's tokens, as the artifact `captured` has them, to the
    student's first `table` ids; None for an objective that needs none.

    Raises `SpecError` where a tokenizer's bytes cannot be recovered.
    """
    if not stage.spec.distils or (stage.spec.is_live and _reads_its_tokens(stage.spec)):
        return None
    student = token_bytes.token_bytes(tokenizer, stage.spec.base, end_ids)
    teacher = read_token_bytes(stage.input(captured), stage.spec)
    ends = frozenset(index for index in student.ends if index < table)
    ours = replace(student, spelled=student.spelled[:table], ends=ends)
    return Translator(teacher, ByteOrder(ours, teacher))


def _reads_its_tokens(spec: JobSpec) -> bool:
    """Whether a live teacher has the student's tokens; an endpoint's are checked when opened."""
    if is_remote(spec):
        return True
    teacher = model_folder.locate(spec.generate.teacher, "generate.teacher")
    student = model_folder.locate(spec.base, "train.student")
    return model_folder.token_map(teacher)[0] == model_folder.token_map(student)[0]


def by_bytes(
    stage: Stage,
    items: dict[Split, list[TrainingItem]],
    translator: Translator,
    signals: dict[str, Signal],
    learned_: tuple[dict[str, str], list[tuple[Response, Example]], dict[str, Decision]],
) -> ByBytes:
    """Puts translated signals into the items, or prepares the rows of a live teacher.

    `learned_` are the texts that are learned, by the id of their response; the responses; and
    curation's decisions. Raises `DataError` where no token has a signal.
    """
    texts, responses, decisions = learned_
    if stage.spec.is_live:
        return ByBytes(live=_for_live_teacher(stage.spec, translator, responses, decisions))
    rows = [(r, signals.get(r.id), texts[r.id]) for part in items.values() for r, _ in part]
    made, reasons = translator.translate(rows)
    by_id = {row.id: signal for (row, _, _), signal in zip(rows, made, strict=True)}
    for split, part in items.items():
        items[split] = [(row, by_id[row.id]) for row, _ in part]
    number = max(1, sum(len(signal.tail_T) for signal in made))
    known = sum(signal.num_known for signal in made) / number
    aligned = sum(int(signal.aligned_T.sum()) for signal in made) / number
    if made and not known:
        reason = "; ".join(reasons) or "no token begins where one of the teacher's does"
        raise DataError(
            f"train: nothing can be learned from the teacher's signal ({reason}); set "
            "train.losses: [{name: cross_entropy}] to learn from its text alone"
        )
    stage.report.note(
        "the teacher's tokens are not the student's: its signal is learned by bytes, at "
        f"{known:.1%} of the tokens; {aligned:.1%} begin where one of the teacher's does"
    )
    return ByBytes(known, aligned, reasons)


def _for_live_teacher(
    spec: JobSpec,
    translator: Translator,
    responses: list[tuple[Response, Example]],
    decisions: dict[str, Decision],
) -> OtherTokens:
    """Returns each response as the teacher reads it, in its own tokens."""
    teacher = spec.generate.teacher
    tokenizer = encoding.load_tokenizer(teacher)
    ends = encoding.end_ids(teacher, tokenizer)
    chats = [response.messages or example.messages for response, example in responses]
    prompts = encoding.render_each(tokenizer, chats, [example.tools for _, example in responses])
    found = {}
    for (response, _), prompt in zip(responses, prompts, strict=True):
        own_ids = not spec.generate.stop  # a text that was cut is no longer that of its ids
        text, ids = learned(tokenizer, response, decisions[response.id], own_ids)
        if response.state == "accepted":
            ids = encoding.with_end(ids, ends)
        if ids and prompt and not isinstance(prompt, str):
            found[response.id] = encoding.encode(response.id, prompt, ids), text
    return OtherTokens(translator, found)
