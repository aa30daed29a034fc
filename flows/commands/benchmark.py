"""`retort benchmark`: public benchmarks of teacher, base and student, beside the job.

It runs without Prefect and MLflow. The same command continues one that was killed.
"""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flows.commands.options import DONE, load_spec, open_store, say
from retort import errors
from retort.events import Event, Reporter, shown

if TYPE_CHECKING:
    from retort.metrics.comparison.shapes import Benchmarks


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds the command with its flags."""
    it = commands.add_parser(
        "benchmark",
        parents=[on_spec],
        help="run public benchmarks of EleutherAI's lm-evaluation-harness on a job's models",
    )
    it.add_argument(
        "--tasks", required=True, metavar="T,T", help="tasks or groups of the harness: gsm8k,mmlu_*"
    )
    it.add_argument(
        "--models",
        default="teacher,base,student",
        metavar="M,M",
        help="models of the job, controls too (default: %(default)s)",
    )
    it.add_argument(
        "--limit", type=_positive, metavar="N", help="ask only the first N questions of each task"
    )
    it.add_argument("--num-fewshot", type=int, metavar="N", help="examples before each question")
    it.add_argument("--include-path", metavar="DIR", help="a folder with tasks of your own (YAML)")
    it.add_argument(
        "--engine",
        choices=("auto", "vllm", "transformers"),
        default="auto",
        help="what runs the models; auto: vllm if installed",
    )
    it.add_argument(
        "--max-length",
        type=_positive,
        metavar="TOKENS",
        help="longest prompt and answer together (default: what all models take, at most 4,096)",
    )
    it.add_argument("--json", action="store_true", help="print benchmarks.json, and nothing else")
    it.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """`retort benchmark`: asks what is missing, prints a table, and renews the job's report."""
    from retort.jobs import reporting
    from retort.jobs.benchmark import BenchmarkRequest, benchmark

    if options.num_fewshot is not None and options.num_fewshot < 0:
        raise errors.SpecError(f"--num-fewshot: {options.num_fewshot} must be 0 or more")
    request = BenchmarkRequest(
        tasks=_names(options.tasks, "--tasks"),
        roles=_names(options.models, "--models"),
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        include_path=options.include_path,
        engine=options.engine,
        max_length=options.max_length,
    )
    spec, _ = load_spec(options)
    store = open_store(options)
    content = benchmark(spec, store, request, Reporter(_tell))
    is_in_report = reporting.refresh(store, spec.name, content.student)
    if options.json:
        print(json.dumps(asdict(content), indent=2, ensure_ascii=False))
        return DONE
    _print(content)
    place = store.job(spec.name).uri
    say(f"benchmarks: {place}/{'report.html' if is_in_report else 'benchmarks.json'}")
    return DONE


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return number


def _names(text: str, flag: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise errors.SpecError(f"{flag} names nothing; give names separated by commas")
    return names


def _tell(event: Event) -> None:
    """Says a line for each note and each task that begins."""
    if event["kind"] == "note":
        say(f"benchmark: {shown(event['text'])}")
    elif event["kind"] == "progress":
        count = f"{event['done']:,} of {event['total']:,} {event['unit']}"
        say(f"benchmark: {count}, {shown(event['note'])}")


def _print(content: "Benchmarks") -> None:
    """Prints a row for each task and metric, a column a model."""
    from flows.commands.tables import open_console, table_of
    from retort.jobs.benchmark import table

    console = open_console()
    console.print(table_of(table(content), folds=False))
    for note in content.notes:
        console.print(f"note: {shown(note)}")
