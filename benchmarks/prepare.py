"""What checked data costs: a million rows read, compared and written, and how much is caught.

`python -m benchmarks.prepare [rows]`. Each size runs in a process of its own, so that the memory
is its own; what was planted is known, so what is found can be counted.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import Measure, show

ROWS, HELD_OUT, WORDS = 1_000_000, 10_000, 60
GSM8K = Path(__file__).resolve().parent.parent.parent / "shared/data/gsm8k/test_200.jsonl"
FORMS = ("{}", "{:,}", "${}.00", "{}.0", r"\boxed{{{}}}", "the answer is {} dollars.")
# Of a hundred rows: near copies, exact copies, verbatim leaks (some in longer rows), edited leaks.
NEAR, EXACT, LEAKED, EDITED = 2, 1, 1, 1


class Corpus:
    """Rows of 60 words: sentences of a long-tailed vocabulary, some of which come again."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.vocabulary = [self._word(rank) for rank in range(50_000)]
        weights = [1 / (rank + 10) for rank in range(50_000)]
        self._stream: list[str] = []
        self._weights = weights
        self.sentences = [" ".join(self.words(10)) for _ in range(20_000)]

    def _word(self, rank: int) -> str:
        parts = ("ba", "ko", "li", "mu", "ne", "pra", "sti", "tor", "va", "zen")
        return "".join(parts[int(digit)] for digit in str(rank))

    def words(self, number: int) -> list[str]:
        """Returns words drawn by their frequency."""
        if len(self._stream) < number:
            self._stream = self.random.choices(self.vocabulary, self._weights, k=100_000)
        found, self._stream = self._stream[:number], self._stream[number:]
        return found

    def row(self) -> list[str]:
        """Returns a new row; one in five holds a sentence that other rows hold too."""
        if self.random.random() < 0.2:
            own = self.words(WORDS - 10)
            return own[:20] + self.random.choice(self.sentences).split() + own[20:]
        return self.words(WORDS)

    def edited(self, row: list[str]) -> list[str]:
        """Returns a row with one word in twenty changed."""
        changed = list(row)
        for place in self.random.sample(range(len(row)), len(row) // 20):
            changed[place] = self.random.choice(self.vocabulary)
        return changed


def write(folder: Path, rows: int) -> dict[str, str]:
    """Writes train.jsonl and test.jsonl; returns what was planted in which row, by id."""
    corpus, planted = Corpus(rows), {}
    held_out = [corpus.row() for _ in range(HELD_OUT)]
    _save(folder / "test.jsonl", ((f"t{i}", row) for i, row in enumerate(held_out)))

    def train() -> Iterator[tuple[str, list[str]]]:
        recent: list[list[str]] = [corpus.row()]
        for index in range(rows):
            place, name = index % 100, f"r{index}"
            row = corpus.row()
            if place < NEAR:
                planted[name], row = "near", corpus.edited(corpus.random.choice(recent))
            elif place < NEAR + EXACT:
                planted[name] = "exact"
                row = [word.upper() for word in corpus.random.choice(recent)]
            elif place < NEAR + EXACT + LEAKED:
                planted[name], row = "leak", corpus.random.choice(held_out)
                if index % 200 < 100:
                    row = [*corpus.words(30), *row, *corpus.words(30)]
            elif place < NEAR + EXACT + LEAKED + EDITED:
                planted[name] = "edited leak"
                row = corpus.edited(corpus.random.choice(held_out))
            elif place % 10 == 9:
                # A row is the model of few copies at most, and stands before them.
                recent.append(row)
                recent = recent[-5000:]
            yield name, row

    _save(folder / "train.jsonl", train())
    return planted


def _save(path: Path, rows: Iterator[tuple[str, list[str]]]) -> None:
    with path.open("w") as stream:
        for name, row in rows:
            stream.write(json.dumps({"id": name, "prompt": " ".join(row)}) + "\n")


def measured(folder: Path) -> dict[str, float]:
    """Prepares the job of a folder in this process; returns seconds and the most memory held."""
    from retort import processes
    from retort.events import SILENT
    from retort.spec import build
    from retort.stages.prepare import prepare
    from retort.stages.stage import Stage
    from retort.store import Store

    section = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    spec = build(
        {
            "name": "benchmark",
            "prepare": {"task_type": "conversation", **section},
            "generate": {"teacher": "none"},
            "train": {"student": "none"},
        }
    )
    store = Store(str(folder / "store"))
    out = store.artifact("prepare", "benchmark")
    started = time.monotonic()
    facts = prepare(Stage("prepare", spec, store, {}, out, SILENT, folder / "log"))
    out.commit({"facts": facts})
    seconds = time.monotonic() - started
    peak = processes.peak_host_memory_bytes()
    return {"seconds": seconds, "peak_bytes": peak}


def caught(folder: Path, planted: dict[str, str]) -> dict[str, float]:
    """Returns the share of each planted kind that was removed, and of clean rows that were."""
    out = folder / "store/artifacts/prepare/benchmark/removed.jsonl"
    removed = {json.loads(line)["example"]["id"] for line in out.open()}
    found = {
        kind: [name in removed for name, was in planted.items() if was == kind]
        for kind in ("near", "exact", "leak", "edited leak")
    }
    rows = sum(1 for _ in (folder / "train.jsonl").open())
    clean = rows - len(planted)
    false = sum(name.startswith("r") and name not in planted for name in removed)
    return {kind: sum(hits) / len(hits) for kind, hits in found.items()} | {"false": false / clean}


def run(rows: int) -> dict[str, float]:
    """Returns what one size costs and catches."""
    with tempfile.TemporaryDirectory(prefix="retort-") as scratch:
        folder = Path(scratch)
        planted = write(folder, rows)
        command = [sys.executable, "-m", "benchmarks.prepare", "--here", scratch]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        found |= caught(folder, planted)
    print(f"{rows:,} rows: " + ", ".join(f"{key} {value:.5g}" for key, value in found.items()))
    return found


def verifier() -> list[Measure]:
    """Returns how often the math verifier agrees with GSM8K's own rule, where its rows are here."""
    if not GSM8K.is_file():
        print(f"no GSM8K rows at {GSM8K}: the verifier is not measured")
        return []
    from retort.data.task_types import math
    from retort.records import Example

    example = Example("x", "test", [])
    own, free = [], []
    for line in GSM8K.read_text().splitlines():
        text = json.loads(line)["answer"]
        right = text.split("####")[1].strip().replace(",", "")
        own.append(math.answer(text, example) == right)
        given = [math.answer(form.format(int(right)), example) for form in FORMS]
        free += [found is not None and math.equal(found, right) for found in given]
    return [
        ("verifier as GSM8K's own rule", sum(own) / len(own), 1.0, all(own)),
        ("verifier on free forms", (rate := sum(free) / len(free)), 0.995, rate >= 0.995),
    ]


def main() -> None:
    """Measures both sizes and prints."""
    if sys.argv[1:2] == ["--here"]:
        print(json.dumps(measured(Path(sys.argv[2]))))
        return
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    small, large = run(rows // 10), run(rows)
    minutes, ratio = large["seconds"] / 60, large["seconds"] / small["seconds"]
    gib = large["peak_bytes"] / 2**30

    def least(name: str, kind: str, target: float) -> Measure:
        return name, large[kind], target, large[kind] >= target

    show(
        [
            (f"prepare {rows:,} rows, minutes", minutes, 6, minutes <= 6),
            ("peak memory, GiB", gib, 3, gib <= 3),
            ("ten times the rows, times the seconds", ratio, 11, ratio <= 11),
            least("near copies found", "near", 0.95),
            least("exact copies found", "exact", 1.0),
            ("clean rows removed", large["false"], 0.001, large["false"] <= 0.001),
            least("verbatim leaks found", "leak", 0.99),
            least("edited leaks found", "edited leak", 0.90),
            *verifier(),
        ]
    )


if __name__ == "__main__":
    main()
