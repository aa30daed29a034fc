"""`retort rows`: the teacher's answers, or the rows that were left out and why."""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from flows.commands.options import DONE, load_spec, open_store, say, several
from retort import errors
from retort.events import shown
from retort.records import STATES, Example, JsonObject, Response, chat_text

MOST_REASONS = 20
# What is counted, the line, and the whole row.
PrintedRow = tuple[str, str, JsonObject]

# What became of rows that are not learned from, for `retort rows`.
OUTCOMES = {
    "rejected": "the answers that curation rejected, and why",
    "quarantined": "the bad rows of the job's files, and why",
    "removed": "the good rows that are not asked (copies, leaks and the like), and why",
}


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds the command with the flags that say which rows are shown, and how."""
    look = commands.add_parser(
        "rows", parents=[on_spec], help="show the teacher's answers, or the rows that were left out"
    )
    several(look, "--state", STATES, "only answers in this state")
    instead = look.add_mutually_exclusive_group()
    for name, text in OUTCOMES.items():
        instead.add_argument(
            f"--{name}", dest="outcome", action="store_const", const=name, help=text
        )
    look.add_argument(
        "--reason", metavar="TEXT", help="of those, only rows whose reason contains this text"
    )
    look.add_argument("--json", action="store_true", help="print whole rows, a JSON object a line")
    look.set_defaults(command=show)


def show(options: argparse.Namespace) -> int:
    """`retort rows`: a line for each row of the wanted kind, and the number of each kind."""
    if options.reason and not options.outcome:
        raise errors.SpecError(f"--reason needs one of --{', --'.join(OUTCOMES)}")
    if options.state and options.outcome:
        raise errors.SpecError(f"--state is for answers; leave it out with --{options.outcome}")
    counts: Counter[str] = Counter()
    for kind, line, row in left_out(options) if options.outcome else answers(options):
        counts[kind] += 1
        if options.outcome and (options.reason or "") not in kind:
            continue
        if options.state and kind not in options.state:
            continue
        print(json.dumps(row, ensure_ascii=False) if options.json else shown(line))
    parts = [f"{count:,} {kind}" for kind, count in counts.most_common(MOST_REASONS)]
    if len(counts) > MOST_REASONS:
        parts.append(f"{len(counts) - MOST_REASONS} further reasons")
    say(", ".join(parts) or f"no rows {options.outcome or 'yet'}")
    return DONE


def answers(options: argparse.Namespace) -> Iterator[PrintedRow]:
    """Yields the state, the line and the whole row of each of the teacher's responses."""
    from retort.jobs import inspection

    spec, _ = load_spec(options)
    for example, response in inspection.rows(spec, open_store(options)):
        cause = response.cause if response.state == "failed" else ""
        text = " ".join(filter(None, (cause, _short(response.text))))
        line = f"{response.state:9} {response.id:24} {text}"
        yield response.state, line, _whole(example, response)


def left_out(options: argparse.Namespace) -> Iterator[PrintedRow]:
    """Yields the reason, the line and the whole row of all that is not learned from."""
    from retort.jobs import inspection

    spec, _ = load_spec(options)
    store = open_store(options)
    if options.outcome == "rejected":
        for example, response, decision in inspection.rejected(spec, store):
            why = f"{decision.filter}: {decision.reason}"
            row = {**_whole(example, response), **vars(decision)}
            yield why, f"{why:32} {response.id:24} {_short(response.text)}", row
    elif options.outcome == "quarantined":
        for bad in inspection.quarantined(spec, store):
            place = f"{bad.file}:{bad.line}"
            yield bad.reason, f"{bad.reason:32} {place} {_short(bad.raw)}", vars(bad)
    else:
        for gone in inspection.removed(spec, store):
            pair = f"{gone.file}:{gone.line} {_short(chat_text(gone.example['messages'][-1:]))}"
            like = f" | {_short(gone.other_text)}" if gone.other_text else ""
            yield gone.reason, f"{gone.reason:32} {pair}{like}", vars(gone)


def _whole(example: Example, response: Response) -> JsonObject:
    """Returns a response with all that is known of its example, and the chat it ends."""
    known = {name: getattr(example, name) for name in ("split", "expected", "metadata")}
    reply = {"role": "assistant", "content": response.text}
    return {
        **vars(response),
        **known,
        "messages": [*(response.messages or example.messages), reply],
    }


def _short(text: str) -> str:
    return " ".join(text.split())[:80]
