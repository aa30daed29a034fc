"""docs/reliability.md, written from the outcomes of the cells."""

import re
from collections import Counter
from pathlib import Path

from benchmarks.failures.matrix import ELSEWHERE, FAULTS, HOW, STEPS, reason
from benchmarks.failures.scenario import Outcome

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
LONGEST_MESSAGE = 320
# A cell's own folders, which differ from run to run.
STORE = re.compile(r"(/\S*?/cells/[^/\s]+/(disk/)?store|s3://retort/retort-bench-[^/\s]+/[\w-]+)")
PACKAGES = re.compile(r"/\S+?/site-packages/")
SERVER = re.compile(r"http://127\.0\.0\.1:\d+")
TEXT = """# Reliability

<!-- Written by `python -m benchmarks.failures`; do not edit it by hand. -->

What becomes of a job when something breaks. Each cell below was run: a real `retort run` of a small
job (56 rows asked at an endpoint, a judge at the same endpoint, a student trained and evaluated
here) with a real Prefect server, MLflow server and, where it says so, an S3 endpoint over HTTP. The
fault hits in the middle of one step, and then **the same command is given again** without the
fault. The result is compared with that of an undisturbed job: every example, answer, decision,
score and weight.

- **rows lost**: records of the finished job that are missing or differ.
- **asked twice**: requests that the endpoint had answered before the fault and was sent again.
- **in flight**: requests that were under way when the fault hit, or that a child sent while it
  ended. No program can know what became of the former.
- **rework**: what the same command did again beside what was missing.

`python -m benchmarks.failures` runs all of it and writes this page (twenty minutes on two cores;
disks of their own need root, a shifted clock a C compiler); `tests/jobs/test_failures.py` runs a
tenth in `make test`.

| word | means |
|---|---|
| goes on | the run itself finishes, with the same result |
| catches up | the run finishes with less and says so; the same command asks for the rest |
| continues | the run stops, or is killed; the same command finishes with the same result |
| told | the next reader stops with the file and the command that makes it again |
| made again | the damage is noticed, and the stage made again by the same command |
| - | cannot happen; the reasons are below |
| a test | a test of its own plays it, which is named below |
| **FAULT** | something was lost, asked twice, silent or without a proper message |
"""


def num_not_reachable() -> int:
    """Returns how many cells cannot happen."""
    return sum(bool(reason(step, fault)) for step in STEPS for fault in FAULTS)


def write(found: list[Outcome]) -> None:
    """Writes the page."""
    by_cell = {(outcome.step, outcome.fault): outcome for outcome in found}
    parts = [TEXT, _numbers(found), _summary(by_cell)]
    parts += [_details(fault, found) for fault in FAULTS]
    parts += [_unreachable(), _gaps(by_cell)]
    PAGE.write_text("\n".join(part for part in parts if part))


def _numbers(found: list[Outcome]) -> str:
    problems = sum(bool(outcome.problem) for outcome in found)
    lost = sum(outcome.rows_lost for outcome in found)
    twice = sum(outcome.asked_twice for outcome in found)
    silent = sum(outcome.is_silent for outcome in found)
    total = len(STEPS) * len(FAULTS)
    return (
        f"Of {total} cells {len(found)} were run and {num_not_reachable()} cannot happen. "
        f"Rows lost: {lost}. Asked twice: {twice}. Damage unseen: {silent}. "
        f"Cells with a fault of Retort: {problems}.\n"
    )


def _summary(by_cell: dict[tuple[str, str], Outcome]) -> str:
    lines = [_row("", *STEPS), _row(*["---"] * (len(STEPS) + 1))]
    for fault, name in FAULTS.items():
        cells = [_word(step, fault, by_cell.get((step, fault))) for step in STEPS]
        lines.append(_row(f"[{name}](#{_anchor(name)})", *cells))
    return "\n".join(["## The matrix\n", *lines, ""])


def _word(step: str, fault: str, outcome: Outcome | None) -> str:
    if reason(step, fault):
        return "-"
    if outcome is None:
        return "a test"
    if outcome.problem:
        return "**FAULT**"
    if fault in ("flipped_bit", "cut_file"):
        return "made again" if outcome.state == "finished" else "told"
    if outcome.state == "finished":
        return "goes on" if outcome.rework.startswith("none") else "catches up"
    return "continues"


def _details(fault: str, found: list[Outcome]) -> str:
    outcomes = [outcome for outcome in found if outcome.fault == fault]
    if not outcomes:
        return ""
    outcomes.sort(key=lambda outcome: STEPS.index(outcome.step))
    heading = ("step", "rows lost", "asked twice", "in flight", "state", "message", "rework")
    lines = [
        f"## {FAULTS[fault]}\n",
        f"{HOW[fault]}\n",
        _row(*heading),
        _row(*["---"] * len(heading)),
    ]
    for outcome in outcomes:
        numbers = (outcome.rows_lost, outcome.asked_twice, outcome.in_flight)
        message = f"**{outcome.problem}** {outcome.message}" if outcome.problem else outcome.message
        rest = (outcome.state, _plain(message), outcome.rework)
        lines.append(_row(outcome.step, *map(str, numbers), *rest))
    return "\n".join([*lines, ""])


def _unreachable() -> str:
    counted: dict[str, list[str]] = {}
    for step in STEPS:
        whys = Counter(reason(step, fault) for fault in FAULTS)
        for why in (why for why in whys if why):
            names = [name for fault, name in FAULTS.items() if reason(step, fault) == why]
            whole = "all" if len(names) == len(FAULTS) else ", ".join(names)
            counted.setdefault(f"{whole} | {why}", []).append(step)
    lines = ["## What cannot happen\n", _row("step", "fault", "why"), _row("---", "---", "---")]
    lines += [f"| {', '.join(steps)} | {rest} |" for rest, steps in counted.items()]
    return "\n".join([*lines, ""])


def _gaps(by_cell: dict[tuple[str, str], Outcome]) -> str:
    lines = []
    for fault, name in FAULTS.items():
        steps = [s for s in STEPS if not reason(s, fault) and (s, fault) not in by_cell]
        if steps:
            why = next((f": {ELSEWHERE[s, fault]}" for s in steps if (s, fault) in ELSEWHERE), "")
            lines.append(f"- {name}, {', '.join(steps)}{why}")
    return "\n".join(["## Played by a test of their own\n", *lines, ""]) if lines else ""


def _plain(message: str) -> str:
    text = SERVER.sub("http://SERVER", STORE.sub("STORE", PACKAGES.sub("", message))).replace(
        "|", "\\|"
    )
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]} ..."


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
