"""`retort plan --choose`: which rows of a pool to pay the teacher for.

The student says which: it answers the rows, and those are worth most of which it is uncertain, and
like which it answers otherwise than the teacher did. Copies of one another, of rows that are
answered and of held-out rows are left out first. The control draws at random from the same rows.
"""

# N rows of the pool, K answered rows
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from retort.data import balance
from retort.errors import DataError, SpecError
from retort.events import Reporter
from retort.jobs.choosing import scores
from retort.jobs.choosing.judging import Judged, Made, judged
from retort.jobs.choosing.pool import Pool
from retort.jobs.choosing.scores import F64
from retort.jobs.source_digests import source_digests
from retort.records import JsonObject, write_lines
from retort.spec import JobSpec, recipes
from retort.spec.prepare import Source
from retort.store import Artifact, Store

# So many rows are looked at for each one that is chosen, and at least so many.
LOOKED_AT_EACH, LEAST_LOOKED_AT = 20, 5000
NUM_KINDS, MOST_REASONS = 10, 12


@dataclass(frozen=True)
class ChooseRequest:
    """What a user asks for: see `retort plan --choose`. `most` rows are drawn and looked at."""

    number: int
    pool: Source
    by: Literal["student", "random"] = "student"
    most: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class ChosenRow:
    """A row that was chosen, and why: its kind, how uncertain the student is (nats a token), how
    often it disagrees with the teacher nearby, and what the row was worth when it was chosen."""

    id: str
    file: str
    line: int
    kind: str
    uncertainty: float | None
    disagreement: float | None
    worth: float | None


@dataclass(frozen=True)
class Kind:
    """Rows that are alike: how many were looked at, are answered already, and were chosen. A random
    choice has about `by_chance` of them. The others are means of those that were looked at."""

    name: str
    num_rows: int
    num_answered: int
    num_chosen: int
    by_chance: float
    uncertainty: float | None
    disagreement: float | None


@dataclass(frozen=True)
class Choice:
    """What was chosen, in its order, and from what: the rows of the pool, how many of them were
    looked at, and how many may not be chosen for which reason."""

    by: str
    seed: int
    num_rows: int
    num_looked_at: int
    left_out: dict[str, int]
    kinds: tuple[Kind, ...]
    chosen: tuple[ChosenRow, ...]
    notes: tuple[str, ...]

    def as_json(self) -> JsonObject:
        """Returns all of it as JSON."""
        return asdict(self)


def choose(
    spec: JobSpec, store: Store, request: ChooseRequest, out: Path, report: Reporter
) -> Choice:
    """Returns the chosen rows, after writing them to `out` as they are in the pool, and beside it
    why each was chosen, and what may not be. The teacher is never asked.

    Raises `SpecError` where the job has no student yet, and `DataError` for a pool without so many
    rows.
    """
    made = Made(spec, store, _artifacts(spec, store))
    if request.by == "student" and "train" not in made.artifacts:
        raise SpecError(
            f"{spec.name}: no student was trained from these rows and knobs in {store.uri}; "
            "`retort run` with the same job and store trains it, or choose with --by random"
        )
    most = request.most or max(LOOKED_AT_EACH * request.number, LEAST_LOOKED_AT)
    pool = Pool(spec, request.pool, made.folder("prepare"), report)
    try:
        found = Judged(pool.draw(max(most, request.number), request.seed, store))
        _check(request.number, found, pool)
        if request.by == "student":
            found = judged(made, found.examples, request.seed, report)
            _check(request.number, found, pool)
        choice = _choice(made, request, pool, found)
        _write(out, choice, pool)
        return choice
    finally:
        pool.close()


def _artifacts(spec: JobSpec, store: Store) -> dict[str, Artifact]:
    """Returns what was made of the job already."""
    found: dict[str, Artifact] = {}
    for name, recipe in recipes(spec, source_digests(spec)).items():
        if name in ("prepare", "expand", "generate", "train"):
            artifact = store.artifact(recipe.stage, recipe.name).finished()
            found |= {name: artifact} if artifact else {}
    return found


def _check(number: int, found: Judged, pool: Pool) -> None:
    if len(found.examples) < number:
        why = "; ".join(
            f"{count:,} {reason}" for reason, count in pool.left_out.most_common(MOST_REASONS)
        )
        raise DataError(
            f"--choose {number}: {len(found.examples):,} of the {pool.num_rows:,} rows of the pool "
            f"can be chosen{f' ({why})' if why else ''}; choose fewer, or give a larger pool"
        )


def _choice(made: Made, request: ChooseRequest, pool: Pool, found: Judged) -> Choice:
    answered = made.answered("train", request.seed)
    examples, number = found.examples, request.number
    texts = [balance.text_of(example) for example in [*examples, *answered]]
    kinds, _ = balance.clusters(texts, NUM_KINDS)
    picked: list[tuple[int, float | None]] = [(row, None) for row in range(number)]
    if request.by == "student":
        sketched, total = scores.sketches(texts), len(examples)
        picked = [*scores.pick(found.scores(), sketched[:total], sketched[total:], number)]
    chosen = tuple(
        ChosenRow(
            examples[row].id,
            *pool.place(examples[row].id),
            kinds[row],
            _mean(found.uncertainty_N, [row]),
            _mean(found.disagreement_N, [row]),
            value,
        )
        for row, value in picked
    )
    return Choice(
        request.by,
        request.seed,
        pool.num_rows,
        len(examples),
        dict(pool.left_out.most_common()),
        tuple(_kinds(kinds, chosen, found)),
        chosen,
        found.notes,
    )


def _kinds(kinds: list[str], chosen: tuple[ChosenRow, ...], found: Judged) -> Iterator[Kind]:
    """Yields what became of each kind, the commonest first; `kinds` are those of the rows that were
    looked at, then of the answered ones."""
    total = len(found.examples)
    answered, taken = Counter(kinds[total:]), Counter(row.kind for row in chosen)
    for name, count in balance.spread(kinds[:total]).items():
        own = [row for row in range(total) if kinds[row] == name]
        yield Kind(
            name,
            count,
            answered[name],
            taken[name],
            len(chosen) * count / total,
            _mean(found.uncertainty_N, own),
            _mean(found.disagreement_N, own),
        )


def _mean(part_N: F64 | None, rows: list[int]) -> float | None:
    return None if part_N is None else float(part_N[rows].mean())


def _write(out: Path, choice: Choice, pool: Pool) -> None:
    """Writes the rows, and beside them a line on each: why it was chosen, or why it may not be."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(b"".join(pool.row(each.id) for each in choice.chosen))
    beside(out, "why").write_bytes(write_lines([*choice.chosen]))
    with beside(out, "left-out").open("wb") as stream:
        stream.writelines(pool.reports())


def beside(out: Path, what: str) -> Path:
    """Returns the path of a file beside the chosen rows: chosen.jsonl, chosen.why.jsonl."""
    return out.with_name(f"{out.stem}.{what}.jsonl")
