"""`retort run`: runs a job in this process, from its rows to its report."""

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flows import embedded
from flows.commands.options import DONE, REFUSED, load_spec, open_store, say, several
from retort.records import STATES
from retort.spec import STAGES

if TYPE_CHECKING:
    from retort.metrics.comparison import ReportContent
    from retort.spec import JobSpec
    from retort.store import Store

# How long the last lines and events may take on their way to Prefect.
SEND_SECONDS = 10.0


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds the command."""
    it = commands.add_parser("run", parents=[on_spec], help="run a job to its report")
    several(it, "--force", STAGES, "run a stage again although it is cached")
    several(it, "--retry", STATES, "ask the teacher again for rows in this state")
    it.add_argument("--json", action="store_true", help="print report.json, and nothing else")
    it.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """`retort run`: runs the job of the command's flags."""
    retry = [f"generate.runtime.retry={json.dumps(options.retry)}"] if options.retry else []
    return run_job(options, *retry)


def run_job(options: argparse.Namespace, *overrides: str) -> int:
    """Runs the flow with further overrides; the report goes to stdout, all else to stderr."""
    from retort.jobs.preflight import check

    spec, notes = load_spec(options, *overrides)
    for note in notes:
        say(f"spec: {note}")
    store = open_store(options)
    with prefect(store) as wait:
        check(spec, store)
        begin_imports(spec, store)
        content = _distill(spec, store, options.force, wait)
    if options.json:
        from retort.metrics.comparison import as_json

        print(json.dumps(as_json(content), indent=2, ensure_ascii=False))
    else:
        from flows.commands.terminal import print_report

        print_report(content, f"{store.job(spec.name).uri}/report.html")
    return DONE if content.gate.passed else REFUSED


def begin_imports(spec: "JobSpec", store: "Store") -> None:
    """Has the teacher's engine import its libraries while Prefect and MLflow are imported here,
    where the job was never begun on this machine, so that it most likely asks its teacher."""
    from retort import processes
    from retort.stages.engine_settings import teacher_runtime
    from retort.stages.generate.capture import capture

    log = store.log(spec.name)
    if not (log.exists() or spec.generate.teachers):
        processes.warm(capture, teacher_runtime(spec), log)


@contextlib.contextmanager
def prefect(store: "Store") -> Iterator[Callable[[], None] | None]:
    """Gives what waits for an embedded Prefect server, which is starting; None where a server's
    address is set."""
    logging.getLogger("retort").setLevel(logging.INFO)
    logging.raiseExceptions = False  # a log line that does not reach Prefect is no news
    embedded.use_settings(embedded.SETTINGS)
    with contextlib.ExitStack() as stack:
        wait = None
        if not embedded.has_server():
            store.probe()  # before a folder is made for the server's database
            wait = stack.enter_context(embedded.server(store.local_state()))
        yield wait


def _distill(
    spec: "JobSpec", store: "Store", force: list[Any], wait: Callable[[], None] | None
) -> "ReportContent":
    from flows.distill import distill, finished

    in_flow(spec, store, wait, lambda: distill(spec, store.uri, tuple(force)), finished)
    return finished.pop(spec.name)


def in_flow(
    spec: "JobSpec",
    store: "Store",
    wait: Callable[[], None] | None,
    flow: Callable[[], object],
    finished: Mapping[str, object],
) -> None:
    """Calls a flow, which leaves its result in `finished` under the job's name; `wait` is of an
    embedded server. Libraries print to stderr."""
    from prefect.settings import (
        PREFECT_CLIENT_MAX_RETRIES,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    from flows.commands.terminal import watching
    from retort.tracking import make_database
    from tasks import listeners

    # By default Prefect tries for a minute to report the run's end to a server that went away.
    settings: dict[Any, Any] = {PREFECT_CLIENT_MAX_RETRIES: 2}
    if wait:
        # While the server starts. A failure is reported when the job's run in MLflow begins.
        with contextlib.suppress(Exception):
            make_database(store)
        wait()
        # Nobody looks for the heartbeat of a run whose server ends with it; ending it takes 1 s.
        settings[PREFECT_FLOWS_HEARTBEAT_FREQUENCY] = None
    log = store.log(spec.name)
    with watching(), contextlib.redirect_stdout(sys.stderr), temporary_settings(settings):
        try:
            flow()
        except Exception as error:
            if spec.name not in finished:
                if log.is_file():
                    say(f"retort: the log of the stages is {log}")
                raise
            say(f"warning: the job's end could not be reported to Prefect ({type(error).__name__})")
        finally:
            listeners.end(SEND_SECONDS)
