"""A job that expands its prompts, with a writer and teacher behind HTTP that do what they are told.

The writer makes sums of names, things and numbers that the request does not show; the teacher
adds, except where a text names the moon: there it never says the same twice.
"""

import os
import random
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from retort.events import SILENT, Reporter
from retort.jobs.source_digests import source_digests
from retort.spec import build, recipes
from retort.stages.expand import expand
from retort.stages.prepare import prepare
from retort.stages.stage import Stage
from retort.store import Folder, open_store
from tests.support.misbehaving import bad

PLACES = ["Basel", "Chur", "Davos", "Erlach", "Freiburg", "Glarus", "Herisau", "Ilanz", "Jona"]
THINGS = ["anvils", "brooms", "candles", "drums", "easels", "flutes", "gloves", "hooks", "irons"]
PEOPLE = ["bakers", "clerks", "divers", "farmers", "guards", "hikers", "jurors", "knights"]


def problem(chosen: random.Random) -> str:
    """A sum in words."""
    first, second = chosen.sample(range(2, 900), 2)
    kind = chosen.randrange(3)
    place, thing, who = chosen.choice(PLACES), chosen.choice(THINGS), chosen.choice(PEOPLE)
    if kind == 0:
        return f"In {place} {first} {thing} are sold, and {second} are given away. How many in all?"
    if kind == 1:
        return f"{first} {who} and {second} other {who} meet at {place}. How many {who} are there?"
    return f"A shop has {first} {thing} and orders {second} for {who}. How many {thing} is that?"


class Model:
    """Answers as writer and as teacher; counts what it was asked."""

    def __init__(self, endless: bool = True):
        self.asked: Counter[str] = Counter()
        self._endless, self._answers = endless, 0
        self.is_away = False

    async def behave(self, seen: Any, request: Any, text: str) -> web.Response:
        """A completion of the text's kind."""
        body = seen.bodies[-1]
        self.asked[text] += 1
        if self.is_away and text.startswith("Rewrite") and sum(text.encode()) % 3 == 0:
            return bad(503)
        reply = self.reply(text, body.get("seed") or 0)
        choice = {"message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
        usage = {"prompt_tokens": len(text.split()), "completion_tokens": len(reply.split())}
        return web.json_response({"choices": [choice], "usage": usage})

    def reply(self, text: str, seed: int) -> str:
        """What it says."""
        chosen = random.Random(seed if self._endless else 1)
        if "Name 5 attributes" in text:
            return '```json\n{"place": ["a town", "a lake"], "size": ["large", "small"]}\n```'
        if "Who would be likely" in text:
            return "1. A teacher of sums.\n2. A shopkeeper."
        if text.startswith("Rewrite the prompt"):
            return problem(chosen)
        if wanted := re.search(r"(\d+) new prompts", text):
            made = [problem(chosen) for _ in range(int(wanted[1]))]
            if chosen.random() < 0.3:
                made[0] = "How far is the moon after 3 days and 4 nights?"
            shown = re.search(r"^1\. (.*)$", text, re.MULTILINE)
            return "Here you are:\n\n" + "\n".join(
                f"{n}. {text}" for n, text in enumerate([*made, shown[1] if shown else ""], start=1)
            )
        self._answers += 1
        total = sum(map(int, re.findall(r"\d+", text)))
        return f"#### {total + self._answers if 'moon' in text else total}"


def job(folder: Path, url: str, **knobs: Any) -> dict[str, Any]:
    """A spec with six seeds, and held-out rows."""
    chosen = random.Random(99)
    for name, number in {"train": 6, "validation": 4, "test": 8}.items():
        rows = [{"id": f"{name}-{n}", "question": problem(chosen)} for n in range(number)]
        lines = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        (folder / f"{name}.jsonl").write_bytes(lines)
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "validation", "test")}
    runtime = {"max_concurrency": 4, "max_attempts": 1}
    return {
        "name": "few",
        "prepare": {"task_type": "math", **files, **knobs.pop("prepare", {})},
        "expand": {"to": 60, **knobs.pop("expand", {})},
        "generate": {
            "teacher": "t",
            "engine": "openai",
            "endpoint": url,
            "top_k": 0,
            "runtime": runtime,
            **knobs.pop("generate", {}),
        },
        "train": {"student": str(folder / "student")},
        **knobs,
    }


def run(
    raw: dict[str, Any], store: str, report: Reporter = SILENT
) -> tuple[dict[str, Any], Folder]:
    """Runs prepare and expand on a store; returns expand's facts and its artifact."""
    spec, opened = build(raw), open_store(store)
    wanted, made = recipes(spec, source_digests(spec)), dict[str, Any]()
    for name, function in {"prepare": prepare, "expand": expand}.items():
        recipe = wanted[name]
        folder = opened.artifact(name, recipe.name)
        log = opened.local_state() / "log"
        if not folder.finished():
            stage = Stage(recipe.stage, recipe.spec, opened, dict(made), folder, report, log)
            folder.commit({"facts": function(stage), "ingredients": recipe.ingredients})
        made[name] = folder.finished()
    found = Folder(made["expand"].uri)
    return found.read_manifest()["facts"], found


def run_and_die(raw: dict[str, Any], store: str, after: int) -> None:
    """Kills this very process group at the n-th sign of progress; for a child."""
    os.setsid()
    number = 0

    def hear(event: Any) -> None:
        nonlocal number
        number += event["kind"] == "progress"
        if number == after:
            os.killpg(0, signal.SIGKILL)

    run(raw, store, Reporter(hear))
