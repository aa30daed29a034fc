"""The union of several teachers' captures: one artifact, as a single teacher's would be.

Each response carries the name of the teacher who wrote it. With `route: all` it holds the first
teacher's responses, with the signals of all fused.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby, islice

from retort.data.token_bytes import TokenBytes
from retort.errors import StageError
from retort.records import JsonObject, Response, read_lines, write_lines
from retort.spec import Route, capture_of
from retort.stages.generate import fusion
from retort.stages.stage import TOKENS, Stage, stream_examples
from retort.stages.teachers import DIFFERENT
from retort.store import Folder, signals
from retort.store.signals import Signal, SignalFile

Facts = JsonObject
# What is a capture's own; of the rest the union says what all of them say.
OF_EACH = ("ledger", "forecast", "parity", "top_k_mass", "most_failed_for")


@dataclass(frozen=True)
class Written:
    """A teacher's response, the file that holds its signal if it has one, and its id there."""

    response: Response
    file: SignalFile | None
    id: str
    fused: Signal | None = None

    @property
    def signal(self) -> Signal | None:
        """The signal, decoded."""
        return self.file.row(self.id) if self.fused is None and self.file else self.fused


@dataclass
class Fused:
    """What became of the answers whose signals were to be fused: how many were, how many have the
    first teacher's alone, and the bound of the error, in probability per token."""

    num_fused: int = 0
    num_alone: int = 0
    num_tokens: int = 0
    mean_bound: float = 0.0
    largest_bound: float = 0.0


def is_union(stage: Stage) -> bool:
    """Whether the stage unites captures, and is none itself."""
    teachers = stage.spec.generate.teachers
    return bool(teachers) and all(capture_of(name) in stage.inputs for name in teachers)


def unite(stage: Stage) -> Facts:
    """Writes all responses in the order of the examples and of the teachers; returns the facts,
    with each teacher's under `teachers`.

    Raises `StageError` where signals are of different tokens, and where two responses share an id.
    """
    union = _Union(stage)
    facts = union.write()
    for line in _outcome(facts):
        stage.report.note(line)
    return facts


class _Union:
    """One union under way."""

    def __init__(self, stage: Stage):
        assert stage.spec.generate.route
        self.stage, self.route = stage, stage.spec.generate.route
        self.captured = {name: stage.facts(capture_of(name)) for name in self.route.order}
        self.k, self.vocabulary = _layout(self.captured)
        self.fused = Fused()
        self.num_tokens = self.num_signals = 0

    def write(self) -> Facts:
        """Writes the shards and returns the facts."""
        rows, number = self._rows(), 0
        counted = {name: Counter[str]() for name in self.route.order}
        while shard := list(islice(rows, self.stage.spec.generate.shard_size)):
            written = [each for of_example in shard for each in of_example]
            self._write(f"{number:05d}", written)
            for each in written:
                counted[str(each.response.teacher)][each.response.state] += 1
                self.num_tokens += each.response.num_tokens
            number += 1
        self._write_token_bytes()
        more = {"fusion": asdict(self.fused)} if self.route.by == "all" else {}
        return {
            **_facts(self.captured, counted),
            "num_shards": number,
            "num_tokens": self.num_tokens,
            "num_signals": self.num_signals,
            **more,
        }

    def _write_token_bytes(self) -> None:
        """Writes the bytes of the tokens, which are alike in all captures that have them; what ends
        an answer of any teacher is an end."""
        folders = [
            self.stage.input(capture_of(name))
            for name, facts in self.captured.items()
            if facts["num_signals"]
        ]
        tables = [TokenBytes.from_json(f.read(TOKENS)) for f in folders if f.has(TOKENS)]
        if tables:
            ends = frozenset[int]().union(*(table.ends for table in tables))
            self.stage.out.write(TOKENS, replace(tables[0], ends=ends).to_json().encode())

    def _rows(self) -> Iterator[list[Written]]:
        """Yields the responses to each example, those of the first teacher first."""
        names = self.route.order
        waiting = {name: _by_example(self.stage.input(capture_of(name))) for name in names}
        heads = {name: next(each, None) for name, each in waiting.items()}
        for example in stream_examples(self.stage.input("prepare"), "train", "validation"):
            found: dict[str, list[Written]] = {}
            for name, head in heads.items():
                if head and head[0] == example.id:
                    found[name], heads[name] = head[1], next(waiting[name], None)
            if self.route.by == "all":
                found = {names[0]: self._fuse(found)}
            yield [_named(self.route, name, each) for name, own in found.items() for each in own]

    def _fuse(self, found: dict[str, list[Written]]) -> list[Written]:
        """Returns the first teacher's answers with the signal of all who scored them."""
        answers, count = found.get(self.route.order[0], []), self.fused
        parts = [own[0].signal for own in found.values() if len(own) == 1]
        known = [signal for signal in parts if signal is not None]
        is_whole = len(answers) == 1 and len(known) == len(self.route.order)
        if not (is_whole and len({signal.target_ids_T.tobytes() for signal in known}) == 1):
            count.num_alone += len(answers)
            return answers
        count.num_fused += 1
        count.num_tokens += len(known[0].tail_T)
        if self.route.fusion == "min_ce":
            return [replace(answers[0], fused=fusion.best_of_each(known))]
        weights = [self.route.weights.get(name, 1.0) for name in found]
        sizes = [int(self.captured[name]["vocabulary"]) for name in found]
        fused, bound_T = fusion.fuse(known, weights, sizes, self.k)
        count.mean_bound += float((bound_T - count.mean_bound).sum()) / max(count.num_tokens, 1)
        count.largest_bound = max(count.largest_bound, float(bound_T.max(initial=0.0)))
        return [replace(answers[0], fused=fused)]

    def _write(self, name: str, written: list[Written]) -> None:
        """Writes a shard. Signals are copied as they lie in the captures where they can be."""
        if len({each.response.id for each in written}) < len(written):
            raise StageError(f"two responses of shard {name} share an id; rename an example")
        out, own = self.stage.out, [(each.response.id, each) for each in written if each.file]
        self.num_signals += len(own)
        if own:
            plain = [
                (new, each.file.raw(each.id))
                for new, each in own
                if each.file and each.fused is None and each.file.vocabulary == self.vocabulary
            ]
            if len(plain) == len(own):
                data = signals.repack(plain, self.k, self.vocabulary)
            else:
                decoded = ((new, each.signal) for new, each in own)
                data = signals.pack([(new, s) for new, s in decoded if s], self.vocabulary)
            out.write(f"signals-{name}.safetensors", data)
        out.write(f"responses-{name}.jsonl", write_lines([each.response for each in written]))


def _by_example(captured: Folder) -> Iterator[tuple[str, list[Written]]]:
    """Yields each example's id and its responses in a capture, a shard at a time."""
    names = captured.files()
    for name in (name for name in names if name.startswith("responses-")):
        beside = name.replace("responses-", "signals-").replace(".jsonl", ".safetensors")
        file = SignalFile.open(captured.read(beside)) if beside in names else None
        known = set(file.ids) if file else set()
        lines = read_lines(Response, captured.read(name))
        for example, responses in groupby(lines, lambda response: response.example_id):
            yield example, [Written(r, file if r.id in known else None, r.id) for r in responses]


def _named(route: Route, teacher: str, written: Written) -> Written:
    """Returns a response with its teacher's name; where all answer, only the first one's keeps its
    id."""
    keeps = route.key is not None or teacher == route.order[0]
    own = written.response.id if keeps else f"{written.response.id}@{teacher}"
    return replace(written, response=replace(written.response, id=own, teacher=teacher))


def _layout(captured: dict[str, Facts]) -> tuple[int, int]:
    """Returns the k and the vocabulary of the signals.

    Raises `StageError` where teachers with signals have different tokens.
    """
    with_signals = {name: facts for name, facts in captured.items() if facts["num_signals"]}
    maps = {name: facts.get("token_map_sha256", name) for name, facts in with_signals.items()}
    if len(set(maps.values())) > 1:
        raise StageError(f"generate.teachers: {DIFFERENT.format(', '.join(maps))}")
    vocabulary = max((int(facts["vocabulary"]) for facts in with_signals.values()), default=1)
    return max((int(facts["top_k"]) for facts in with_signals.values()), default=0), vocabulary


def _facts(captured: dict[str, Facts], counted: dict[str, Counter[str]]) -> Facts:
    """Returns what all captures say alike, the sums of their counts, and each teacher's own."""
    first = next(iter(captured.values()))
    shared = {
        key: value
        for key, value in first.items()
        if key not in OF_EACH and all(facts.get(key) == value for facts in captured.values())
    }
    states, spending = Counter[str](), Counter[str]()
    for name, facts in captured.items():
        states.update(counted[name])
        spending.update(facts["spending"])
    sums = {
        key: sum(facts[key] for facts in captured.values()) for key in ("num_asked", "num_restarts")
    }
    total = states.total()
    teachers = {
        name: {
            "model": facts["model"],
            "engine": facts["engine"],
            "num_responses": facts["num_responses"],
            "share": counted[name].total() / max(total, 1),
            "num_accepted": facts["states"].get("accepted", 0),
            "num_tokens": facts["num_tokens"],
            "num_asked": facts["num_asked"],
            "spending": facts["spending"],
        }
        for name, facts in captured.items()
    }
    own = {"num_responses": total, "states": dict(states), "spending": dict(spending)}
    return {**shared, **sums, **own, "teachers": teachers}


def _outcome(facts: Facts) -> Iterator[str]:
    """Yields lines on what each teacher answered or scored, and how well signals were fused."""
    for name, own in facts["teachers"].items():
        cost = own["spending"]["cost"]
        money = f", {cost:,.2f} money" if cost else ""
        yield (
            f"{name}: {own['num_responses']:,} responses ({own['share']:.0%}), "
            f"{own['num_accepted']:,} accepted{money}"
        )
    if fused := facts.get("fusion"):
        yield (
            f"{fused['num_fused']:,} signals are fused, {fused['num_alone']:,} are the first "
            "teacher's alone; ids outside a teacher's top k have their even part of its tail, "
            f"which is off by at most {fused['mean_bound']:.2g} in probability per token on "
            f"average, {fused['largest_bound']:.2g} at most"
        )
