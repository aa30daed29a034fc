"""The child: opens the teacher, asks what the ledger lacks, commits answers as they finish."""

import contextlib
from dataclasses import asdict

from retort.data import token_bytes
from retort.errors import SpecError
from retort.events import Reporter
from retort.records import JsonObject
from retort.stages.engine_settings import engine_of
from retort.stages.generate import write_artifact
from retort.stages.generate.capture_session import CaptureSession
from retort.stages.stage import TOKENS, Stage, from_arguments
from retort.stages.teacher_requests import ledger_name, request_context
from retort.store import model_folder
from retort.store.ledger import Ledger


def capture(arguments: JsonObject, run: str, max_num_seqs: int, report: Reporter) -> JsonObject:
    """Asks what is missing and writes the artifact; returns the stage's facts."""
    stage = from_arguments(arguments, report)
    session = _loaded(stage, run, max_num_seqs)
    _ask(session)
    progress = session.progress
    ledger = session.ledger
    counts = write_artifact.write(stage.out, session.plan, ledger, session.examples(), stage.spec)
    if counts["num_signals"] and not engine_of(stage.spec).REMOTE:
        _write_token_bytes(stage)
    return {
        **request_context(stage.spec),
        **ledger.engine(),
        "ledger": ledger.folder.name,
        "top_k_mass": progress.top_k_mass,
        **counts,
        "num_asked": session.num_requests,
        "spending": session.budget.facts(),
        "forecast": asdict(progress.forecast) if progress.forecast else {},
    }


def _write_token_bytes(stage: Stage) -> None:
    """Writes the bytes of the teacher's tokens, for a student with another tokenizer.

    A teacher of which they cannot be recovered has none; a student with its tokenizer needs none.
    """
    folder = model_folder.locate(stage.spec.generate.teacher, "generate.teacher")
    with contextlib.suppress(SpecError, ValueError, KeyError):  # of odd tokenizers
        stage.out.write(TOKENS, token_bytes.load(folder).to_json().encode())


def _loaded(stage: Stage, run: str, max_num_seqs: int) -> CaptureSession:
    name = ledger_name(request_context(stage.spec))
    ledger = Ledger(stage.store.ledger(name), engine_of(stage.spec).parse, run)
    session = CaptureSession(stage, ledger, run, max_num_seqs)
    session.load()
    return session


def _ask(session: CaptureSession) -> None:
    """Asks what is missing, and commits all that is finished, whatever ends the run."""
    try:
        if session.num_missing:
            session.ledger.describe(request_context(session.spec))
            session.ask_all()
    finally:
        session.close()
