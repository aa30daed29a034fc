"""What a student learns from a teacher behind an endpoint, against the same teacher run here.

`python -m benchmarks.endpoint_signal` serves the quickstart's teacher with vLLM's own server. One
job asks it over HTTP, knowing neither its tokenizer nor its weights: its listed log-probabilities
become the signal by their bytes. The other runs the model itself. The teacher answers greedily, so
that both learn from the same texts: of two jobs whose texts were drawn the students differed by 1.4
points (0.2 to 2.7 in favour of the local one), of which nobody can say whether draw or way made
them. All seeds are on the same problems; intervals resample test problems, each with all its seeds.
It takes longer than most: with half as many passes two trainings of one job are ten points apart.
"""

import itertools
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import Measure, show
from benchmarks.seeds import JOB, SEEDS, Scores
from benchmarks.students import job_of, made_in, tell, trained
from retort.spec import JobSpec
from tests.support import servers

NUM_EPOCHS, MOST_POINTS = 18, 0.01
KEY = "ENDPOINT_SIGNAL_KEY"


def specs_of(folder: Path, url: str, seed: int) -> dict[str, JobSpec]:
    """Returns the job with each way to the teacher."""
    runtime = {"max_concurrency": 64, "num_threads": None}
    greedy: dict[str, Any] = {"temperature": 0.0}
    at = {
        "teacher": "served",
        "engine": "openai",
        "endpoint": url,
        "api_key_env": KEY,
        "max_model_len": None,
        "runtime": runtime,
    }
    train = {"seed": seed, "num_epochs": NUM_EPOCHS, "controls": []}
    return {
        role: job_of(folder, f"{role}-{seed}", {"generate": generate, "train": train})
        for role, generate in {"endpoint": greedy | at, "local": greedy}.items()
    }


def main() -> None:
    """Prints a table with a line a seed and way, then one JSON line a measure."""
    seeds = [int(seed) for seed in sys.argv[1:]] or list(SEEDS)
    os.environ[KEY] = "a-key-that-the-server-does-not-ask-for"
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as store:
        folder, home = Path(store), Path(store, "server")
        home.mkdir()
        model, more = JOB.parent / "models" / "teacher", ("served", "--max-model-len", "256")
        try:
            url = servers.shared(home, lambda at: servers.vllm_with(at, model, *more))
            specs = {seed: specs_of(folder, url, seed) for seed in seeds}
            captured = {
                role: made_in(store, spec, "curate") for role, spec in specs[seeds[0]].items()
            }
        finally:
            servers.end_all(home)
        ways = list(itertools.product(seeds, captured))
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            jobs = [specs[seed][role] for seed, role in ways]
            scores = dict(zip(ways, pool.map(partial(trained, store), jobs), strict=True))
    runs: list[Scores] = [{role: scores[seed, role] for role in captured} for seed in seeds]
    print(f"{'seed':8}{'teacher':22}accuracy    gain   95% interval")
    for seed, found in zip(seeds, runs, strict=True):
        for role in captured:
            tell(str(seed), [found], role, "local", role)
    gap = tell("pooled", runs, "endpoint", "local", "endpoint")["value"]
    measures: list[Measure] = [
        ("endpoint_signal.off_local", abs(gap), MOST_POINTS, abs(gap) <= MOST_POINTS)
    ]
    show(measures)


if __name__ == "__main__":
    main()
