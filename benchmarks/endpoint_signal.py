"""What a student learns from a teacher behind an endpoint, against the same teacher run here.

`python -m benchmarks.endpoint_signal` serves the quickstart's teacher with vLLM's own server. One
job asks it over HTTP, knowing neither its tokenizer nor its weights: its listed log-probabilities
become the signal by their bytes. The other runs the model itself and scores the same texts, so that
only the way to the signal differs: two draws of texts alone make students two points apart, greedy
ones too, for the teacher knows many words for one thing. All seeds are on the same problems;
intervals resample test problems, each with all its seeds. It takes longer than most: with half as
many passes two trainings of one job are ten points apart, and of three seeds the mean gap is known
to about a point: six were -1.3 and +0.1 points, three by three.
"""

import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import Measure, show
from benchmarks.seeds import JOB, Scores
from benchmarks.students import job_of, made_in, tell, trained
from retort.spec import JobSpec
from retort.stages.stage import read_decisions, read_examples, read_responses
from retort.store import Artifact, InputFolder
from tests.support import servers

NUM_SEEDS, NUM_EPOCHS, MOST_POINTS = 6, 18, 0.01
ROLES = ("endpoint", "local")
KEY = "ENDPOINT_SIGNAL_KEY"


def endpoint_spec(folder: Path, url: str, seed: int) -> JobSpec:
    """Returns the job whose teacher is at the endpoint."""
    at = {
        "teacher": "served",
        "engine": "openai",
        "endpoint": url,
        "api_key_env": KEY,
        "max_model_len": None,
        "runtime": {"max_concurrency": 64, "num_threads": None},
    }
    return job_of(folder, f"endpoint-{seed}", {"generate": at, "train": trained_by(seed)})


def local_spec(folder: Path, files: Mapping[str, str], seed: int) -> JobSpec:
    """Returns the job whose teacher scores here what the endpoint's answered."""
    sections: dict[str, dict[str, Any]] = {
        "prepare": {**files, "limit": None},
        "generate": {"mode": "score"},
        "train": trained_by(seed),
    }
    return job_of(folder, f"local-{seed}", sections)


def trained_by(seed: int) -> dict[str, Any]:
    """Returns the knobs of a training."""
    return {"seed": seed, "num_epochs": NUM_EPOCHS, "controls": []}


def write_answered(folder: Path, made: Mapping[str, Artifact]) -> dict[str, str]:
    """Writes the rows whose answers are learned, with these answers; returns the files."""
    inputs = {name: InputFolder(made[name].uri) for name in ("prepare", "generate", "curate")}
    decisions, files = read_decisions(inputs["curate"]), dict[str, str]()
    texts = {r.example_id: r for r in read_responses(inputs["generate"]) if decisions[r.id].kept}
    for split in ("train", "validation"):
        rows = (
            {
                "id": example.id,
                "question": example.messages[-1]["content"],
                "answer": texts[example.id].text,
            }
            for example in read_examples(inputs["prepare"], split)
            if example.id in texts
        )
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[split] = str(path)
    return files


def main() -> None:
    """Prints a table with a line a seed and way, then one JSON line a measure."""
    seeds = [int(seed) for seed in sys.argv[1:]] or list(range(NUM_SEEDS))
    os.environ[KEY] = "a-key-that-the-server-does-not-ask-for"
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as store:
        folder, home = Path(store), Path(store, "server")
        home.mkdir()
        model, more = JOB.parent / "models" / "teacher", ("served", "--max-model-len", "256")
        try:
            url = servers.shared(home, lambda at: servers.vllm_with(at, model, *more))
            specs = {("endpoint", seed): endpoint_spec(folder, url, seed) for seed in seeds}
            captured = made_in(store, specs["endpoint", seeds[0]], "curate")
        finally:
            servers.end_all(home)
        files = write_answered(folder, captured)
        specs |= {("local", seed): local_spec(folder, files, seed) for seed in seeds}
        made_in(store, specs["local", seeds[0]], "curate")
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = pool.map(partial(trained, store), specs.values())
            scores = dict(zip(specs, found, strict=True))
    runs: list[Scores] = [{role: scores[role, seed] for role in ROLES} for seed in seeds]
    print(f"{'seed':8}{'teacher':22}accuracy    gain   95% interval")
    for seed, each in zip(seeds, runs, strict=True):
        for role in ROLES:
            tell(str(seed), [each], role, "local", role)
    gap = tell("pooled", runs, "endpoint", "local", "endpoint")["value"]
    measures: list[Measure] = [
        ("endpoint_signal.off_local", abs(gap), MOST_POINTS, abs(gap) <= MOST_POINTS)
    ]
    show(measures)


if __name__ == "__main__":
    main()
