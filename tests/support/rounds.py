"""A tiny job with on-policy rounds, run without Prefect, that can be killed at any event."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from retort.jobs.run import JobRun
from retort.spec import load
from retort.store import Artifact, open_store
from tests.support.tiny import write_job

ROUNDS = {"rounds": 2, "prompts": 8, "held_out": 4, "max_rise": 10.0}
# Answers of random models are of any length and wording.
ROUNDS |= {"max_truncated": 1.0, "max_repeated": 1.0, "max_divergence": 100.0}


CONTROLS = ("offline_steps", "offline_cost")


def write(folder: Path, controls: tuple[str, ...] = CONTROLS, **own: Any) -> Path:
    """Writes the job; `own` are knobs of the rounds."""
    path = write_job(folder, "transformers")
    raw = yaml.safe_load(path.read_text())
    # Several batches of answers: a kill comes between two.
    raw["generate"]["runtime"]["max_num_seqs"] = 4
    raw["train"] |= {"on_policy": ROUNDS | own, "controls": [*controls]}
    path.write_text(yaml.safe_dump(raw))
    return path


def train(
    path: Path,
    store: Path | str,
    overrides: tuple[str, ...] = (),
    listen: Callable[[str, Any], None] = lambda stage, event: None,
) -> dict[str, Artifact]:
    """Makes what is not cached, up to the last training; returns the artifacts by name."""
    job = JobRun(load(path, list(overrides))[0], open_store(str(store)), [], listen)
    found: dict[str, Artifact] = {}
    try:
        for name, recipe in job.recipes.items():
            if recipe.stage in ("export", "evaluate"):
                break
            inputs = {each: found[each] for each in recipe.inputs}
            found[name] = job.cached(name, inputs) or job.make(name, inputs)
    finally:
        job.close()
    return found


def train_and_die(path: Path, store: Path, moment: tuple[str, str]) -> None:
    """Kills this very process at the first event of a kind of a stage, of progress when there is
    some; for a child."""
    os.setsid()

    def listen(stage: str, event: Any) -> None:
        if (stage, event["kind"]) == moment and event.get("done", 1):
            os.killpg(0, signal.SIGKILL)

    train(path, store, listen=listen)
