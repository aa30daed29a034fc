"""Stores whose artifacts are made, and made to look old, by hand: for the tests of `retort gc`."""

import argparse
import os
import time
from pathlib import Path
from typing import Any

from flows.commands import gc as command
from flows.commands.options import on_spec
from retort.jobs import cleanup
from retort.store import Store

DAY = 86_400.0


def hexed(number: int) -> str:
    """A name of the form that artifacts have."""
    return f"{number:016x}"


def make(store: Store, stage: str, number: int, **more: Any) -> tuple[str, str]:
    """Commits an artifact of a few bytes; `inputs` are those it was made from."""
    folder = store.artifact(stage, hexed(number))
    folder.write("data.bin", b"x" * (1000 * (number + 1)))
    inputs = {label: hexed(n) for label, n in more.get("inputs", {}).items()}
    ingredients = {"inputs": inputs, "sources": more.get("sources", {})}
    folder.commit({"ingredients": ingredients, "facts": more.get("facts", {})})
    return stage, hexed(number)


def age(store: Store, days: float, below: str = "") -> None:
    """Makes all files below a folder of a store look as old."""
    then = time.time() - days * DAY
    for path in (Path(store.uri) / below).rglob("*"):
        os.utime(path, (then, then))


def refer(store: Store, name: str, **artifacts: int) -> None:
    """Lets a job's latest run have used artifacts."""
    named = {label.replace("__", "-"): hexed(n) for label, n in artifacts.items()}
    store.job(name).write_json("artifacts.json", named)


def going(made: cleanup.CleanupPlan) -> set[tuple[str, str]]:
    return {item.key for item in made.to_remove}


def delete(made: cleanup.CleanupPlan) -> set[tuple[str, str]]:
    """Removes what a plan says; what is gone."""
    return {item.key for item, is_gone in cleanup.remove(made) if is_gone}


def path_of(store: Store, key: tuple[str, str]) -> Path:
    return Path(store.uri) / "artifacts" / key[0] / key[1]


def ledger(store: Store, number: int, model: str = "m") -> tuple[str, str]:
    """A ledger with one segment."""
    folder = store.ledger(hexed(number))
    folder.write_json("manner.json", {"engine": "openai", "model": model})
    folder.write("segments/1.jsonl", b"{}\n")
    return "ledger", hexed(number)


def run(*arguments: object) -> int:
    top = argparse.ArgumentParser()
    command.add(top.add_subparsers(required=True), on_spec())
    options = top.parse_args(["gc", *map(str, arguments)])
    return options.command(options)
