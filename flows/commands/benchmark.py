"""`retort benchmark`: public benchmarks of teacher, base and student, beside the job.

The surprise: it runs without Prefect and MLflow. A killed one is continued by the same command.
"""

import argparse
import json
from typing import Any

from flows.commands.options import DONE, load_spec, say
from retort import errors
from retort.events import Event, Reporter
from retort.store import open_store


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds the command with its flags."""
    it = commands.add_parser(
        "benchmark",
        parents=[on_spec],
        help="ask a job's models public benchmarks, with EleutherAI's lm-evaluation-harness",
    )
    it.add_argument(
        "--tasks", required=True, metavar="T,T", help="its tasks or groups: gsm8k,mmlu_* ..."
    )
    it.add_argument(
        "--models", default="teacher,base,student", metavar="M,M", help="which; controls too"
    )
    it.add_argument("--limit", type=_positive, metavar="N", help="the first N questions of a task")
    it.add_argument("--num-fewshot", type=int, metavar="N", help="examples before each question")
    it.add_argument("--include-path", metavar="DIR", help="a folder with tasks of your own (YAML)")
    it.add_argument(
        "--engine",
        choices=("auto", "vllm", "transformers"),
        default="auto",
        help="auto: vllm if installed",
    )
    it.add_argument(
        "--max-length",
        type=_positive,
        metavar="TOKENS",
        help="prompt and answer; as the shortest model takes, at most 4,096, if not given",
    )
    it.add_argument("--json", action="store_true", help="print benchmarks.json, and only that")
    it.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """`retort benchmark`: asks what is missing, prints a table, and renews the job's report."""
    from retort.jobs.benchmark import BenchmarkRequest, benchmark, refresh

    if options.num_fewshot is not None and options.num_fewshot < 0:
        raise errors.SpecError(f"--num-fewshot: {options.num_fewshot}; 0 or more")
    asked = BenchmarkRequest(
        tasks=_names(options.tasks, "--tasks"),
        roles=_names(options.models, "--models"),
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        include_path=options.include_path,
        engine=options.engine,
        max_length=options.max_length,
    )
    spec, _ = load_spec(options)
    store = open_store(options.store)
    content = benchmark(spec, store, asked, Reporter(_tell))
    shown = refresh(spec, store, content)
    if options.json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return DONE
    _print(content)
    place = store.job(spec.name).uri
    say(f"benchmarks: {place}/{'report.html' if shown else 'benchmarks.json'}")
    return DONE


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return number


def _names(text: str, flag: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise errors.SpecError(f"{flag}: nothing is named; give names with commas between")
    return names


def _tell(event: Event) -> None:
    """Says a line for each note and each task that begins."""
    if event["kind"] == "note":
        say(f"benchmark: {event['text']}")
    elif event["kind"] == "progress":
        count = f"{event['done']:,} of {event['total']:,} {event['unit']}"
        say(f"benchmark: {count}, {event['note']}")


def _print(content: dict[str, Any]) -> None:
    """Prints a row for each task and metric, a column a model."""
    from rich.console import Console
    from rich.table import Table

    from retort.jobs.benchmark import table

    console = Console(soft_wrap=True)
    heading, *rows = table(content)
    shown = Table()
    for name in heading:
        shown.add_column(name, min_width=len(name))
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    for note in content["notes"]:
        console.print(f"note: {note}", highlight=False, markup=False)
