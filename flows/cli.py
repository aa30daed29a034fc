"""The `retort` command. Exit codes: 0 done and gate passed, 1 failed, 2 bad spec or data, 3 gate
refused. Prefect is imported only by `run`, after its surroundings are set.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retort import errors
from retort.preflight import check
from retort.records import STATES, Example, Response
from retort.spec import STAGES, JobSpec, load
from retort.storage import Store, open_store

DONE, FAILED, BAD_INPUT, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130
MOST_REASONS = 20
Shown = tuple[str, str, dict[str, Any]]  # what is counted, the line, the whole row

# What became of rows that are not learned from, for `retort rows`.
OUTCOMES = {
    "rejected": "the answers that curation rejected, and why",
    "quarantined": "the bad rows of the job's files, and why",
    "removed": "the good rows that are not asked (copies, leaks ...), and why",
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and leaves with its exit code."""
    options = parser().parse_args(arguments)
    try:
        code = options.command(options)
    except KeyboardInterrupt:
        _say("retort: interrupted; finished work is kept, the same command continues")
        code = INTERRUPTED
    except Exception as error:  # the last stop: a message for people, an exit code for scripts
        if options.debug:
            traceback.print_exc()
        _say(f"retort: {_message(error)}")
        code = BAD_INPUT if isinstance(error, errors.USER_ERRORS) else FAILED
    sys.exit(code)


def parser() -> argparse.ArgumentParser:
    """Returns the command line's grammar."""
    top = argparse.ArgumentParser(
        prog="retort", description="Distils a teacher model into a student, and says what it cost."
    )
    commands = top.add_subparsers(title="commands", required=True)
    on_spec = _on_spec()

    run_it = commands.add_parser("run", parents=[on_spec], help="run a job to its report")
    _several(run_it, "--force", STAGES, "run a stage again although it is cached")
    _several(run_it, "--retry", STATES, "ask the teacher again for rows in this state")
    run_it.add_argument("--json", action="store_true", help="print report.json, and only that")
    run_it.set_defaults(command=run)
    check_it = commands.add_parser(
        "validate", parents=[on_spec], help="check all that can fail later"
    )
    check_it.set_defaults(command=validate)
    ask = commands.add_parser("why", parents=[on_spec], help="say which stages would run, and why")
    ask.set_defaults(command=why)
    look = commands.add_parser(
        "rows", parents=[on_spec], help="show the teacher's answers, or the rows that were left out"
    )
    _choices_of_rows(look)
    look.set_defaults(command=rows)
    print_schema = commands.add_parser("schema", help="print the JSON schema of a job")
    print_schema.set_defaults(command=schema, debug=False)
    return top


def _on_spec() -> argparse.ArgumentParser:
    """Returns what all commands on a job share."""
    on_spec = argparse.ArgumentParser(add_help=False)
    on_spec.add_argument("spec", metavar="SPEC", help="the job file (YAML)")
    on_spec.add_argument("--store", default=".retort", help="a folder or s3://bucket/prefix")
    on_spec.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one knob of the spec",
    )
    on_spec.add_argument(
        "--teacher", metavar="MODEL", help="a folder, hub id or endpoint's URL instead of the job's"
    )
    on_spec.add_argument(
        "--student", metavar="MODEL", help="a folder or hub id instead of the job's"
    )
    on_spec.add_argument("--debug", action="store_true", help="show tracebacks")
    return on_spec


def _choices_of_rows(look: argparse.ArgumentParser) -> None:
    """Adds the flags that say which rows are shown, and how."""
    _several(look, "--state", STATES, "only these")
    instead = look.add_mutually_exclusive_group()
    for name, text in OUTCOMES.items():
        instead.add_argument(
            f"--{name}", dest="outcome", action="store_const", const=name, help=text
        )
    look.add_argument("--reason", metavar="R", help="of those, only where the reason holds this")
    look.add_argument("--json", action="store_true", help="whole rows, one JSON object a line")


def _several(
    command: argparse.ArgumentParser, flag: str, choices: tuple[str, ...], text: str
) -> None:
    """Adds a flag that may be given several times, each time with one of the choices."""
    kind = "STAGE" if choices == STAGES else "STATE"
    allowed = f"{text}: {', '.join(choices)}"
    command.add_argument(
        flag, action="append", default=[], choices=choices, metavar=kind, help=allowed
    )


def run(options: argparse.Namespace) -> int:
    """`retort run`: runs the flow in this process."""
    retry = [f"generate.runtime.retry={json.dumps(options.retry)}"] if options.retry else []
    spec, notes = _load(options, *retry)
    for note in notes:
        _say(f"spec: {note}")
    store = open_store(options.store)
    check(spec, store)
    surround(store)
    from flows.distill import distill
    from flows.terminal import print_report, watching

    # Whatever a library prints belongs on stderr: stdout is for the report alone.
    log = store.local_state() / "logs" / f"{spec.name}.log"
    with watching(), contextlib.redirect_stdout(sys.stderr):
        try:
            content: dict[str, Any] = distill(spec, store.uri, options.force)
        except Exception:
            if log.is_file():
                _say(f"retort: what the stages had to say is in {log}")
            raise
    if options.json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        print_report(content, f"{store.job(spec.name).uri}/report.md")
    return DONE if content["gate"]["passed"] else REFUSED


def validate(options: argparse.Namespace) -> int:
    """`retort validate`: checks spec, data, models, store and disk without loading a model."""
    spec, notes = _load(options)
    for line in [*notes, *check(spec, open_store(options.store))]:
        print(line)
    print(f"{spec.name} can run")
    return DONE


def why(options: argparse.Namespace) -> int:
    """`retort why`: one line per stage, cached or not, and which ingredient changed."""
    from retort import inspection

    spec, _ = _load(options)
    store = open_store(options.store)
    found = inspection.why(spec, store)
    width = max(map(len, found))
    for name, lines in found.items():
        print(f"{name:{width}}", "cached" if not lines else f"runs: {'; '.join(lines)}")
        if name == "generate" and lines:
            print(f"{'':{width}} {inspection.asked(spec, store)}")
    return DONE


def rows(options: argparse.Namespace) -> int:
    """`retort rows`: a line for each row of the kind asked for, and how many there are of each."""
    if options.reason and not options.outcome:
        raise errors.SpecError(f"--reason needs one of --{', --'.join(OUTCOMES)}")
    if options.state and options.outcome:
        raise errors.SpecError(f"--state is for answers; leave it out with --{options.outcome}")
    counts: Counter[str] = Counter()
    found = left_out(options) if options.outcome else answers(options)
    for kind, line, row in found:
        counts[kind] += 1
        if options.outcome and (options.reason or "") not in kind:
            continue
        if options.state and kind not in options.state:
            continue
        print(json.dumps(row, ensure_ascii=False) if options.json else line)
    say = [f"{count:,} {kind}" for kind, count in counts.most_common(MOST_REASONS)]
    if len(counts) > MOST_REASONS:
        say.append(f"{len(counts) - MOST_REASONS} further reasons")
    _say(", ".join(say) or f"no rows {options.outcome or 'yet'}")
    return DONE


def answers(options: argparse.Namespace) -> Iterator[Shown]:
    """Yields the state, the line and the whole row of each of the teacher's responses."""
    from retort import inspection

    spec, _ = _load(options)
    for example, response in inspection.rows(spec, open_store(options.store)):
        said = [response.cause] if response.state == "failed" else []
        said.append(_short(response.text))
        line = f"{response.state:9} {response.id:24} {' '.join(filter(None, said))}"
        yield response.state, line, _whole(example, response)


def left_out(options: argparse.Namespace) -> Iterator[Shown]:
    """Yields the reason, the line and the whole row of all that is not learned from."""
    from retort import inspection

    spec, _ = _load(options)
    store = open_store(options.store)
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
            pair = f"{gone.file}:{gone.line} {_short(str(gone.example['messages'][-1]['content']))}"
            like = f" | {_short(gone.other_text)}" if gone.other_text else ""
            yield gone.reason, f"{gone.reason:32} {pair}{like}", vars(gone)


def _whole(example: Example, response: Response) -> dict[str, Any]:
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


def schema(options: argparse.Namespace) -> int:
    """`retort schema`: prints the JSON schema of a job spec."""
    print(json.dumps(JobSpec.model_json_schema(), indent=2))
    return DONE


def _look_beside(spec: str) -> None:
    """Lets plug-ins be found beside the job file, by this process and by the stages' own."""
    folder = str(Path(spec).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
        known = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{known}{os.pathsep}{folder}" if known else folder


def _load(options: argparse.Namespace, *more: str) -> tuple[JobSpec, list[str]]:
    overrides = [*options.overrides, *more]
    _look_beside(options.spec)
    return load(options.spec, overrides, options.teacher, options.student)


def surround(store: Store) -> None:
    """Sets the surroundings for an embedded Prefect, unless the user has a server of their own."""
    logging.getLogger("retort").setLevel(logging.INFO)
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # Prefect's own lines and tracebacks would drown the progress; they are in its UI.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    profiles = Path.home() / ".prefect" / "profiles.toml"
    has_server = profiles.is_file() and "PREFECT_API_URL" in profiles.read_text()
    if "PREFECT_API_URL" in os.environ or has_server:
        return
    home = store.local_state() / "prefect"
    os.environ.setdefault("PREFECT_HOME", str(home))
    os.environ.setdefault("PREFECT_LOCAL_STORAGE_PATH", str(home / "storage"))
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")


def _message(error: BaseException) -> str:
    """Returns what a person needs: the message of an error of ours, the kind and text of others."""
    ours = (*errors.USER_ERRORS, errors.StoreError, errors.StageError)
    text = str(error)
    return text if isinstance(error, ours) else f"{type(error).__name__}: {text}"


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
