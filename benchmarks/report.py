"""The report of a job with 10,000 test rows: how large its page is, and how soon it can be used.

`python -m benchmarks.report` runs a real job whose rows are as long as people's are, with the
engine `echo` and models of a few thousand parameters, makes its page again, and opens that in
Chromium, each time with an empty profile. Usable is when the first examples stand and filters work.
"""

import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks import show
from retort.metrics.comparison import read_content
from retort.stages.report.examples import read_side_by_side
from retort.stages.report.rendering import draw, page
from retort.store import Folder
from tests.support.browser import see
from tests.support.tiny import write_job

NUM_ROWS = 10_000
NUM_OPENINGS = 5
MOST_BYTES = 5_000_000
WORDS = [
    *("customer", "invoice", "the", "was", "sent", "twice"),
    *("and", "nobody", "could", "tell", "why"),
]
TOPICS = ("billing", "delivery", "returns", "account", "other")


def write(folder: Path) -> Path:
    """Returns the job's file: a question has about 90 words, and so has its answer."""
    job = write_job(folder, "echo")
    chance = random.Random(0)
    with (folder / "data/test.jsonl").open("w") as stream:
        for at in range(NUM_ROWS):
            words = " ".join(chance.choices(WORDS, k=chance.randint(30, 150)))
            # Echo repeats the question, so that two answers in three are right.
            answer = str(at if chance.random() < 2 / 3 else at + 1)
            row = {
                "id": f"test-{at}",
                "question": f"{words}: {at}",
                "answer": answer,
                "metadata": {"topic": chance.choice(TOPICS), "priority": chance.randint(1, 3)},
            }
            stream.write(json.dumps(row) + "\n")
    raw = yaml.safe_load(job.read_text())
    raw["generate"]["max_model_len"] = 1024
    raw["prepare"]["deduplicate"] = {"exact": False, "near": False}
    raw["prepare"]["decontaminate"] = {"enabled": False}
    raw["report"] = {"slices": ["topic", "priority"]}
    job.write_text(yaml.safe_dump(raw))
    return job


def made(folder: Path) -> Folder:
    """Returns the report's artifact of the job, run by the command; the gate refuses it."""
    command = [sys.executable, "-m", "flows.cli", "run", str(write(folder))]
    command += ["--store", str(folder / "store"), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(f"the job failed: exit code {done.returncode}")
    return Folder(json.loads(done.stdout)["artifacts"]["report"])


def seconds_to_use(path: Path) -> float:
    """Returns the seconds from opening the page until its script has shown the first examples."""
    shutil.rmtree(path.parent / "chromium", ignore_errors=True)
    seen = see(path)
    ready = re.search(r'data-ready-milliseconds="(\d+)"', seen.dom)
    if ready is None or seen.console:
        raise SystemExit(f"the page did not come up: {seen.console}")
    return int(ready[1]) / 1000


def main() -> None:
    """Prints a table, then one JSON line a measure."""
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as root:
        reported = made(Path(root))
        content = read_content(reported.read_json("report.json"))
        examples = read_side_by_side(reported.read_json("examples.json"))
        card = {"card": reported.read_json("pictures.json")["card"]}
        assert examples.num_examples == NUM_ROWS
        draw(content)  # the first picture pays for matplotlib
        started = time.perf_counter()
        data = page(content, examples, draw(content) | card)
        seconds_to_make = time.perf_counter() - started
        path = Path(root) / "report.html"
        path.write_bytes(data)
        openings = [seconds_to_use(path) for _ in range(NUM_OPENINGS)]
    shown = len(examples.rows)
    print(f"{shown:,} of {NUM_ROWS:,} examples on the page; usable after", *openings, "s")
    usable = statistics.median(openings)
    show(
        [
            ("report.bytes", len(data), MOST_BYTES, len(data) <= MOST_BYTES),
            ("report.usable_seconds", usable, 2.0, usable <= 2),
            ("report.page_seconds", seconds_to_make, 10.0, seconds_to_make <= 10),
        ]
    )


if __name__ == "__main__":
    main()
