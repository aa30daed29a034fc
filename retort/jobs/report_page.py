"""A job's report with what was found beside the job: public benchmarks, and the plan.

A run leaves both in its report where they are of its student; each of them, made later, renews the
report that is there.
"""

from dataclasses import replace

from retort.jobs import benchmark
from retort.jobs.plan import page as plan_page
from retort.jobs.plan import record, words
from retort.jobs.plan.shapes import Plan
from retort.metrics.comparison import ReportContent, as_json, read_content
from retort.stages.report.rendering import PlanShown, page_of
from retort.store import Folder, Store


def with_found(store: Store, content: ReportContent) -> ReportContent:
    """Returns a report with the benchmarks and the plan of its student, as far as there are any."""
    plan = _plan_of(store, content)
    return replace(
        content,
        benchmarks=benchmark.of_student(store, content.name, content.fingerprints["train"]),
        plan=plan.as_json() if plan else None,
    )


def page(store: Store, content: ReportContent, reported: Folder) -> bytes:
    """Returns the page of a report; `reported` is the report's artifact."""
    plan = _plan_of(store, content)
    return page_of(content, reported, _shown(plan) if plan else None)


def refresh(store: Store, name: str, student: str) -> bool:
    """Renews a job's report with what there is of its student; returns whether there is one, of the
    student of this training."""
    latest = store.job(name)
    if not latest.has("report.json"):
        return False
    raw = latest.read_json("report.json")
    fingerprints = raw.get("fingerprints", {})
    if student not in fingerprints.values():
        return False
    reported = store.artifact("report", fingerprints["report"])
    if not reported.has("pictures.json"):
        return False  # made by an earlier Retort
    content = with_found(store, read_content(raw))
    latest.write_json("report.json", as_json(content))
    latest.write("report.html", page(store, content, reported))
    return True


def _plan_of(store: Store, content: ReportContent) -> Plan | None:
    """Returns a job's last plan, where it is of one of the report's trainings."""
    plan = record.latest(store.job(content.name))
    return plan if plan and plan.points[-1].train in content.fingerprints.values() else None


def _shown(plan: Plan) -> PlanShown:
    return PlanShown(words.headline(plan), words.forecasts(plan), plan_page.picture(plan))
