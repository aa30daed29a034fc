"""What expansion is worth: the quickstart's student of 50 seed problems, and of 2,000 that a tiny
model made of them.

`python -m benchmarks.expand` trains the writer, a language model of 240,000 parameters, lets it
write 2,000 problems that the quickstart's teacher answers alike twice, and trains two students
that see as many rows: some of 50 seeds again and again, or the 2,000. Leaks into the test are
looked for here by brute force, pair by pair. The interval resamples test problems. A folder named
on the command line keeps what was made, for a run that goes on there.
"""

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import show
from benchmarks.seeds import JOB, NUM_RESAMPLES
from benchmarks.students import accuracies, made
from benchmarks.writer import NUM_WRITTEN, make_writer
from retort import metrics
from retort.jobs.run import JobRun
from retort.records import Example, is_expanded
from retort.spec import JobSpec, load
from retort.stages.stage import read_examples
from retort.store import Artifact, InputFolder, open_store

NUM_SEEDS, NUM_ROWS, NUM_EPOCHS = 50, 2000, 14
LEAK = 0.6  # share of a test problem's three-word sequences, as prepare.decontaminate.overlap
RUNTIME = {"max_num_seqs": 128, "num_threads": 1}
Triples = set[tuple[str, ...]]
Vectors = dict[str, list[float]]  # by example: the score, and 1


def spec_of(folder: Path, is_expanding: bool) -> JobSpec:
    """Returns the quickstart with the seeds alone, or with the prompts that are made of them."""
    num_epochs = NUM_EPOCHS if is_expanding else NUM_EPOCHS * NUM_ROWS // NUM_SEEDS
    knobs: dict[str, Any] = {
        "prepare.train": str(folder / "seeds.jsonl"),
        "generate.engine": "transformers",
        "generate.runtime": {**RUNTIME, "parity_samples": 0},
        "train.controls": [],
        "train.num_epochs": num_epochs,
    }
    if is_expanding:
        writer = {"model": str(folder / "writer"), "engine": "transformers", "runtime": RUNTIME}
        knobs["expand"] = {
            "to": NUM_ROWS,
            "by": ["self_instruct"],
            "per_request": NUM_WRITTEN,
            "temperature": 1.0,
            "samples": 2,
            "writer": {**writer, "max_tokens": 180},
        }
    return load(JOB, [f"{key}={json.dumps(value)}" for key, value in knobs.items()])[0]


def run(folder: Path, is_expanding: bool) -> tuple[JobSpec, dict[str, Artifact]]:
    """Makes a job up to its student; returns its spec and artifacts."""

    def listen(stage: str, event: Any) -> None:
        if event["kind"] == "note":
            print(f"{stage}: {event['text']}", file=sys.stderr, flush=True)

    job = JobRun(spec_of(folder, is_expanding), open_store(str(folder / "store")), [], listen)
    try:
        return job.spec, made(job)
    finally:
        job.close()


def words_of(example: Example) -> list[str]:
    """The words and numbers of a problem, in order."""
    return re.findall(r"\w+", str(example.messages[-1]["content"]))


def triples(words: list[str]) -> Triples:
    """The three-word sequences."""
    lower = [word.lower() for word in words]
    return set(zip(lower, lower[1:], lower[2:], strict=False))


def leaks(new: list[Example], test: list[Example]) -> tuple[int, int, set[str]]:
    """Returns how many new problems are a test problem; how many hold its numbers, its names and
    most of its sequences; and the test problems whose numbers, in order, any new one has."""
    asked = [(words, triples(words), numbers(words)) for words in map(words_of, new)]
    by_numbers: dict[tuple[str, ...], list[int]] = {}
    for place, (_, _, own) in enumerate(asked):
        by_numbers.setdefault(own, []).append(place)
    exact, near, alike = set[int](), set[int](), set[str]()
    for example in test:
        words = words_of(example)
        of_test, names = triples(words), {word for word in words[1:] if word.istitle()}
        for place in by_numbers.get(numbers(words), ()):
            alike.add(example.id)
            theirs = asked[place]
            if [w.lower() for w in theirs[0]] == [w.lower() for w in words]:
                exact.add(place)
            elif names <= set(theirs[0]) and len(of_test & theirs[1]) >= LEAK * len(of_test):
                near.add(place)
    return len(exact), len(near), alike


def numbers(words: list[str]) -> tuple[str, ...]:
    """The numbers, in order."""
    return tuple(word for word in words if word.isdigit())


def main() -> None:
    """Prints what was written, then one JSON line a measure."""
    torch.set_num_threads(1)
    if sys.argv[1:]:
        measure(Path(sys.argv[1]).resolve())
        return
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as name:
        measure(Path(name))


def measure(folder: Path) -> None:
    """Makes the writer and both students in a folder, and prints what was found."""
    rows = (JOB.parent / "data/train.jsonl").read_text().splitlines()[:NUM_SEEDS]
    (folder / "seeds.jsonl").write_text("\n".join(rows) + "\n")
    if not (folder / "writer").is_dir():
        make_writer(folder / "writer")
    grown, few = run(folder, True), run(folder, False)
    expanded = InputFolder(grown[1]["expand"].uri)
    facts = expanded.read_manifest()["facts"]["expanded"]
    train, test = read_examples(expanded, "train"), read_examples(expanded, "test")
    new = [example for example in train if is_expanded(example)]
    exact, near, alike = leaks(new, test)
    print(json.dumps({key: value for key, value in facts.items() if key != "spending"}))
    for example in new[:3]:
        print(
            f"  {example.messages[-1]['content']}  (from {', '.join(example.metadata['parents'])})"
        )
    gains = compare([accuracies(*each, "train") for each in (few, grown)], alike)
    show(
        [
            ("expand.rows", len(train), NUM_ROWS, len(train) >= NUM_ROWS),
            ("expand.exact_leaks", exact, 0, exact == 0),
            ("expand.near_leaks", near, 0, near == 0),
            ("expand.gain", gains[0]["value"], 0.0, gains[0]["value"] > 0),
            ("expand.gain_low", gains[0]["low"], 0.0, gains[0]["low"] > 0),
            ("expand.gain_low_of_others", gains[1]["low"], 0.0, gains[1]["low"] > 0),
        ]
    )


def compare(scores: list[Vectors], alike: set[str]) -> list[dict[str, Any]]:
    """Prints both students' accuracy; returns the gain over all test problems, and over those
    whose numbers no written problem has."""
    apart = [{k: v for k, v in each.items() if k not in alike} for each in scores]
    gains = []
    for label, (few, grown) in {
        "all test problems": scores,
        f"without the {len(alike)} whose numbers were written too": apart,
    }.items():
        gain = metrics.difference("accuracy", grown, few, NUM_RESAMPLES, seed=0)
        own, other = (sum(score for score, _ in s.values()) / len(s) for s in (grown, few))
        bounds = f"{100 * gain['low']:+.1f} to {100 * gain['high']:+.1f}"
        print(f"{label}: {own:.1%}, the student of the seeds {other:.1%}; {bounds}", flush=True)
        gains.append(gain)
    return gains


if __name__ == "__main__":
    main()
