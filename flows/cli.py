"""The `retort` command. Exit codes: 0 done and gate passed, 1 failed, 2 bad spec or data, 3 gate
refused. Prefect is imported only by `run`, after its surroundings are set.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from flows import databases
from flows.commands import benchmark, compare, doctor, gc, jobs, node, promote, rows, up
from flows.commands.options import (
    BAD_INPUT,
    DONE,
    FAILED,
    INTERRUPTED,
    REFUSED,
    load_spec,
    on_spec,
    say,
    several,
)
from retort import errors
from retort.jobs.preflight import check
from retort.processes.disk import make_folder
from retort.records import STATES
from retort.spec import STAGES, JobSpec
from retort.store import Store, open_store


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and leaves with its exit code."""
    options = parser().parse_args(arguments)
    # A shell that starts a program in the background has it ignore this; then no cancel of ours
    # would end it, nor what it starts.
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = options.command(options)
    except KeyboardInterrupt:
        say("retort: interrupted; finished work is kept, the same command continues")
        code = INTERRUPTED
    except Exception as error:  # the last stop: a message for people, an exit code for scripts
        if options.debug:
            traceback.print_exc()
        say(f"retort: {_message(error)}")
        code = BAD_INPUT if isinstance(error, errors.USER_ERRORS) else FAILED
    sys.exit(code)


def parser() -> argparse.ArgumentParser:
    """Returns the command line's grammar."""
    top = argparse.ArgumentParser(
        prog="retort", description="Distils a teacher model into a student, and says what it cost."
    )
    commands = top.add_subparsers(title="commands", required=True)
    flags = on_spec()

    run_it = commands.add_parser("run", parents=[flags], help="run a job to its report")
    several(run_it, "--force", STAGES, "run a stage again although it is cached")
    several(run_it, "--retry", STATES, "ask the teacher again for rows in this state")
    run_it.add_argument("--json", action="store_true", help="print report.json, and only that")
    run_it.set_defaults(command=run)
    check_it = commands.add_parser(
        "validate", parents=[flags], help="check all that can fail later"
    )
    check_it.set_defaults(command=validate)
    ask = commands.add_parser("why", parents=[flags], help="say which stages would run, and why")
    ask.set_defaults(command=why)
    for module in (rows, jobs, benchmark, compare, promote):
        module.add(commands, flags)
    for module_alone in (up, doctor, gc, node):
        module_alone.add(commands)
    print_schema = commands.add_parser("schema", help="print the JSON schema of a job")
    print_schema.set_defaults(command=schema, debug=False)
    return top


def run(options: argparse.Namespace) -> int:
    """`retort run`: runs the flow in this process."""
    retry = [f"generate.runtime.retry={json.dumps(options.retry)}"] if options.retry else []
    spec, notes = load_spec(options, *retry)
    for note in notes:
        say(f"spec: {note}")
    store = open_store(options.store)
    check(spec, store)
    surround(store)
    from flows.commands.terminal import print_report, watching
    from flows.distill import distill

    # Whatever a library prints belongs on stderr: stdout is for the report alone.
    log = store.log(spec.name)
    with watching(), contextlib.redirect_stdout(sys.stderr):
        try:
            content: dict[str, Any] = distill(spec, store.uri, tuple(options.force or ()))
        except Exception:
            if log.is_file():
                say(f"retort: what the stages had to say is in {log}")
            raise
    if options.json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        print_report(content, f"{store.job(spec.name).uri}/report.html")
    return DONE if content["gate"]["passed"] else REFUSED


def validate(options: argparse.Namespace) -> int:
    """`retort validate`: checks spec, data, models, store and disk without loading a model."""
    spec, notes = load_spec(options)
    for line in [*notes, *check(spec, open_store(options.store))]:
        print(line)
    print(f"{spec.name} can run")
    return DONE


def why(options: argparse.Namespace) -> int:
    """`retort why`: one line per stage, cached or not, and which ingredient changed."""
    from retort.jobs import inspection

    spec, _ = load_spec(options)
    store = open_store(options.store)
    found = inspection.why(spec, store)
    width = max(map(len, found))
    for name, lines in found.items():
        print(f"{name:{width}}", "cached" if not lines else f"runs: {'; '.join(lines)}")
        if name == "generate" and lines:
            print(f"{'':{width}} {inspection.what_is_asked(spec, store)}")
    return DONE


def schema(options: argparse.Namespace) -> int:
    """`retort schema`: prints the JSON schema of a job spec."""
    print(json.dumps(JobSpec.model_json_schema(), indent=2))
    return DONE


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
    state = store.local_state()
    for name, value in databases.files(state).prefect.items():
        os.environ.setdefault(name, value)
    home = make_folder(state / "prefect")  # Prefect makes no folder above its own
    os.environ.setdefault("PREFECT_HOME", str(home))
    os.environ.setdefault("PREFECT_LOCAL_STORAGE_PATH", str(home / "storage"))
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")


def _message(error: BaseException) -> str:
    """Returns what a person needs: the message of an error of ours, the kind and text of others."""
    ours = (*errors.USER_ERRORS, errors.StoreError, errors.StageError)
    text = str(error)
    return text if isinstance(error, ours) else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    main()
