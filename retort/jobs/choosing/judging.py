"""What the student's answers say of rows: how uncertain it is, and how often it is wrong nearby."""

# N rows of the pool, K answered rows
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from retort import metrics
from retort.data import balance, task_types
from retort.errors import SpecError
from retort.events import Reporter
from retort.jobs.choosing import scores
from retort.jobs.choosing.asking import answers, entropy
from retort.jobs.choosing.scores import F64
from retort.jobs.shadow.sample import Sample
from retort.metrics.scoring import AGREEMENT
from retort.records import Example, Response, Split, read_lines
from retort.spec import JobSpec
from retort.spec.fingerprint import examples_of
from retort.stages.evaluate.compared_models import is_answered
from retort.stages.stage import stream_examples
from retort.store import Artifact, Folder, InputFolder, Store

# So many answered rows show where the student is wrong: held-out ones where there are enough,
# because it may know the others by heart.
MOST_ANSWERED, ENOUGH = 4000, 50


@dataclass(frozen=True)
class Made:
    """What was made of a job so far: its artifacts by their stage."""

    spec: JobSpec
    store: Store
    artifacts: dict[str, Artifact]

    def folder(self, stage: str) -> Folder | None:
        """Returns an artifact's folder; None where it was not made."""
        name = examples_of(self.artifacts) if stage == "prepare" else stage
        return InputFolder(self.artifacts[name].uri) if name in self.artifacts else None

    def answered(self, split: Split, seed: int) -> list[Example]:
        """Returns some of the rows that the teacher was asked, in random order."""
        prepared, drawn = self.folder("prepare"), Sample(MOST_ANSWERED, seed)
        return drawn.add_all(stream_examples(prepared, split) if prepared else ()).examples()


@dataclass(frozen=True)
class Judged:
    """Rows with what is known of each: None where nothing is (N,)."""

    examples: list[Example]
    uncertainty_N: F64 | None = None
    disagreement_N: F64 | None = None
    notes: tuple[str, ...] = ()

    def scores(self) -> F64:
        """Returns the mean of the ranks of what is known (N,), from 0 to 1."""
        known = [part for part in (self.uncertainty_N, self.disagreement_N) if part is not None]
        mean_N: F64 = np.mean([scores.ranks(part_N) for part_N in known], axis=0)
        return mean_N


def judged(made: Made, examples: list[Example], seed: int, report: Reporter) -> Judged:
    """Returns the rows that the student could answer, with what its answers say.

    Raises `SpecError` where they say nothing, and what asking the student raises.
    """
    right = _teacher_texts(made)
    known = [e for e in made.answered("validation", seed) if e.id in right]
    if len(known) < ENOUGH:
        known += [e for e in made.answered("train", seed) if e.id in right]
    uncertain, texts, wanted = dict[str, float | None](), dict[str, str](), {e.id for e in known}
    asked = answers(made.spec, made.store, made.artifacts["train"], [*known, *examples], report)
    for response, signal in asked:
        if is_answered(response):
            uncertain[response.id] = entropy(signal)
            if response.id in wanted:
                texts[response.id] = response.text
    left = [example for example in examples if example.id in uncertain]
    notes = []
    if number := len(examples) - len(left):
        notes.append(f"{number:,} rows that the student cannot take are not chosen")
    found = [value for e in left if (value := uncertain[e.id]) is not None]
    is_known = len(found) == len(left)
    known = [example for example in known if example.id in texts]
    if not (is_known or known):
        raise SpecError(
            "--by student: its engine gives no distributions, and no row is answered by the "
            "teacher; choose with --by random, or set evaluate.engine to vllm or transformers"
        )
    if not is_known:
        notes.append("the student's engine gives no distributions: only disagreement counts")
    if not known:
        notes.append("no row is answered by the teacher: only the student's uncertainty counts")
    wrong_N = _disagreement(made.spec, left, known, texts, right) if known else None
    return Judged(left, np.array(found) if is_known else None, wrong_N, tuple(notes))


def _disagreement(
    spec: JobSpec,
    examples: list[Example],
    known: list[Example],
    texts: dict[str, str],
    right: dict[str, str],
) -> F64:
    kind = task_types.load(spec.prepare.task_type)
    agrees = metrics.statistics(kind, known, texts, right)[AGREEMENT]
    wrong_K = np.array([1.0 - agrees[example.id][0] for example in known])
    rows = scores.sketches([balance.text_of(example) for example in [*known, *examples]])
    return scores.disagreement(rows[len(known) :], rows[: len(known)], wrong_K)


def _teacher_texts(made: Made) -> dict[str, str]:
    """Returns the teacher's first accepted answers to the job's rows, by the rows' ids."""
    generated = made.folder("generate")
    names = generated.files() if generated else []
    responses: Iterator[Response] = (
        response
        for name in names
        if generated and name.startswith("responses-")
        for response in read_lines(Response, generated.read(name))
    )
    return {
        r.example_id: r.text
        for r in responses
        if r.state == "accepted" and r.messages is None and not (r.sample or r.turn)
    }
