"""What people are shown of a capture: its pace, and the time that is left."""

from collections import Counter

from retort.engines import Answer
from retort.events import Reporter
from retort.records import Response
from retort.spec import Generate
from retort.stages.budget import Budget, Forecast
from retort.stages.generate.progress import Progress


def answered(progress: Progress, now: list[float], seconds: float) -> None:
    now[0] += seconds
    progress.count(Answer("a", {}), Response("a", "yes", [], "stop", 3, 7))


def shown(progress: Progress, events: list[dict]) -> str:
    progress.show(force=True)
    return next(e["note"] for e in reversed(events) if e["kind"] == "progress")


def test_the_time_left_is_counted_from_answers_not_from_loading(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    events: list[dict] = []
    budget = Budget(Generate(teacher="a").spending, "an artifact")
    progress = Progress(Reporter(events.append), budget)
    progress.begin(Counter(), 116)
    budget.start()
    now[0] += 500  # the first answer takes long to come
    for _ in range(16):
        answered(progress, now, 0.1)
    assert "0:10 left" in shown(progress, events)
    progress.foresee(Forecast(116, 0, 0, seconds=58.0, least_seconds=10.0, cost=0.0))
    assert "0:50 left" in shown(progress, events)
    for _ in range(40):
        answered(progress, now, 0.5)
    assert "0:30 left" in shown(progress, events)  # 60 more, half a second each
