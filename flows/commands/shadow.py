"""`retort shadow`: a challenger, the champion and the logged answers on real requests, and drift.

Exit codes: 0 all was compared; 3 the prompts are not those of the training any more.
"""

import argparse
import json
from typing import TYPE_CHECKING, Any

from flows.commands.options import DONE, REFUSED, on_store, open_store, say
from retort.errors import SpecError
from retort.events import shown

if TYPE_CHECKING:
    from retort.jobs.shadow import Drift, Shadow
    from retort.jobs.shadow.compare import Compared

# Requests that a terminal shows, and characters of each text.
MOST_SHOWN, MAX_CHARACTERS = 10, 300


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds the command. It is about a registered model, and takes no SPEC."""
    it = commands.add_parser(
        "shadow", help="ask a student, and the champion, what was really asked"
    )
    it.add_argument("name", metavar="NAME", help="NAME (its challenger), NAME/VERSION or folder")
    it.add_argument(
        "--traffic",
        action="append",
        required=True,
        metavar="FILE",
        help="logs: OpenTelemetry, Langfuse, LiteLLM, MLflow, vLLM, or rows; may be several",
    )
    it.add_argument("--since", metavar="TIME", help="the first moment, such as 2026-11-01 (UTC)")
    it.add_argument("--until", metavar="TIME", help="the first moment that is not read any more")
    it.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="metadata that a request must have; may be given several times",
    )
    it.add_argument(
        "--sample", type=int, default=500, metavar="N", help="requests (default: %(default)s)"
    )
    it.add_argument("--against", metavar="MODEL", help="champion (default), a VERSION, or a model")
    it.add_argument("--drift", action="store_true", help="also: are the prompts those of training?")
    it.add_argument("--engine", metavar="ENGINE", help="instead of that of the student's job")
    it.add_argument("--task-type", metavar="NAME", help="of a model that no job of Retort's made")
    it.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    it.add_argument("--json", action="store_true", help="print all of it as JSON, and only that")
    on_store(it)
    it.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """`retort shadow`: prints the metrics, the verdict, the disagreements, and the drift."""
    from retort.events import Reporter
    from retort.jobs.finding import rivals
    from retort.jobs.shadow import ShadowRequest, shadow

    if options.sample < 0 or not (options.sample or options.drift):
        raise SpecError(f"--sample {options.sample}: ask for 1 request or more, or for --drift")
    request = ShadowRequest(
        _traffic(options),
        options.sample,
        options.drift,
        options.engine,
        options.task_type,
        options.seed,
    )
    store = open_store(options)
    judged, champion = rivals(store, options.name, options.against)
    notes = Reporter(lambda event: say(event["text"]) if event["kind"] == "note" else None)
    found = shadow(store, judged, champion, request, notes)
    if options.json:
        print(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        _print(found)
    return REFUSED if found.drift and found.drift.is_alarm else DONE


def _traffic(options: argparse.Namespace) -> Any:
    from pydantic import ValidationError

    from retort.jobs.shadow.compare import traffic_of

    where: dict[str, tuple[str, ...]] = {}
    for text in options.where:
        key, equals, value = text.partition("=")
        if not equals:
            raise SpecError(f"--where {text}: write it as KEY=VALUE")
        where[key] = (*where.get(key, ()), value)
    try:
        return traffic_of(options.traffic, since=options.since, until=options.until, where=where)
    except ValidationError as error:
        first = error.errors()[0]
        given = f"--{first['loc'][0]} {first['input']}"
        raise SpecError(f"{given}: give a date or a time, such as 2026-11-01T08:00:00Z") from None


def _print(found: "Shadow") -> None:
    from flows.commands.tables import open_console, table_of
    from retort.metrics.comparison.formatting import estimate

    console = open_console()
    if found.num_requests:
        rows = [["against the logged answers", *found.models.values()]]
        for name in next(iter(found.metrics.values())):
            cells = (
                estimate(own.get(name), name, with_interval=True) for own in found.metrics.values()
            )
            rows.append([name, *cells])
        console.print(table_of(rows))
        console.print(f"{found.num_requests:,} requests, each of a conversation of its own")
    if found.verdict:
        console.print(shown(found.verdict), style="bold")
    for each in found.requests[:MOST_SHOWN]:
        _print_request(console, each)
    if found.drift:
        _print_drift(console, found.drift)
    for note in found.notes:
        console.print(shown(f"note: {note}"))


def _print_request(console: Any, each: "Compared") -> None:
    if not each.gap:
        return
    console.print()
    for name, text in {"asked": each.prompt, "logged": each.logged, **each.answers}.items():
        score = f" ({each.scores[name]:.2f})" if name in each.scores else ""
        line = " ".join(text.split())
        cut = line if len(line) <= MAX_CHARACTERS else f"{line[:MAX_CHARACTERS]}..."
        console.print(shown(f"{name}{score}: {cut}"))


def _print_drift(console: Any, drift: "Drift") -> None:
    from retort.jobs.shadow import ALARM

    said = "are not those of the training any more" if drift.is_alarm else "are those of training"
    console.print()
    console.print(
        f"the prompts {said}: p = {drift.p_value:.4f} (alarm at {ALARM:g}), "
        f"{drift.num_window:,} ({drift.num_known:,} of them in it) against "
        f"{drift.num_training:,} of training; about {drift.new_share:.0%} are new",
        style="bold" if drift.is_alarm else "",
    )
    for word in drift.words:
        console.print(shown(f"  {word.word}: {word.window:.1%}, in training {word.training:.1%}"))
