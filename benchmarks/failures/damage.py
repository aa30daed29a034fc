"""Damage of a finished job: whoever reads the file says so, with the command that mends it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec

from benchmarks.failures.lab import WAIT_SECONDS
from retort.jobs.verify import verify
from retort.store import open_store

if TYPE_CHECKING:
    from benchmarks.failures.scenario import Bench, Outcome

# What is damaged at each step, and the stage that reads it.
VICTIMS = {
    "prepare": ("prepare", "train-00000.jsonl", "curate"),
    "generate": ("generate", "responses-00000.jsonl", "curate"),
    "commit": ("generate", "manifest.json", ""),
    "upload": ("generate", "responses-00000.jsonl", "curate"),
    "curate": ("curate", "decisions.jsonl", "train"),
    "train": ("train", "student/model.safetensors", "evaluate"),
    "export": ("export-gguf-f16", "model/model.gguf", "evaluate"),
    "evaluate": ("evaluate", "answers-student.jsonl", "report"),
    "report": ("report", "report.json", "release"),
    "register": ("release", "model/model.safetensors", ""),
}


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {"flipped_bit": _flip, "cut_file": _cut}


def play(bench: "Bench", outcome: "Outcome") -> None:
    """Damages a file, runs what reads it, then does what the message says, and runs again."""
    from benchmarks.failures.scenario import judge, message_of, state_of

    made, file, reader = VICTIMS[bench.cell.step]
    path, stage = _damage(bench, made, file), made.partition("-")[0]
    bench.has_hit = True
    found = [text for each in verify(open_store(bench.store), None) for text in each.damages]
    command = bench.start(*([f"--force={reader}"] if reader else []))
    code = command.wait(WAIT_SECONDS)
    outcome.state, outcome.message = state_of(code), message_of(command.lines)
    mended = bench.start(f"--force={stage}")
    judge(bench, outcome, command, mended, [mended.wait(WAIT_SECONDS)])
    is_noticed = any(path in text for text in found)
    is_told = code == 1 and path in outcome.message and f"--force {stage}" in outcome.message
    # A cut file has another size, by which the artifact counts as unfinished and is made again.
    is_mended = (
        code in (0, 3)
        and bench.cell.fault == "cut_file"
        and f"{made}: started" in "\n".join(command.lines)
    )
    outcome.is_silent = outcome.is_silent or not (is_told or is_mended)
    if outcome.is_silent and not outcome.problem:
        outcome.problem = f"the damage was not told: {code}, {outcome.message}"
    elif not is_noticed and not outcome.problem:
        outcome.problem = f"`retort verify` does not name {path}"
    outcome.rework = f"{stage}, by --force {stage}" if is_told else f"{stage}, by itself"


def _damage(bench: "Bench", stage: str, file: str) -> str:
    """Damages a file of the stage's artifact; returns its address."""
    store = open_store(bench.store)
    name = store.job("tiny").read_json("artifacts.json")[stage]
    path = f"{store.artifact(stage.partition('-')[0], name).uri}/{file}"
    change = DAMAGES[bench.cell.fault]
    if bench.cell.on_s3:
        files = fsspec.filesystem("s3", endpoint_url=bench.lab.servers.s3["AWS_ENDPOINT_URL"])
        files.pipe_file(path, change(files.cat_file(path)))
    else:
        Path(path).write_bytes(change(Path(path).read_bytes()))
    return path
