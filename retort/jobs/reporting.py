"""The report of a run, with what was found beside the job: public benchmarks, and the plan.

A run leaves both in its report where they are of its student; each of them, made later, renews the
report that is there.
"""

import json
from dataclasses import replace

from retort.jobs import benchmark
from retort.jobs.plan import page as plan_page
from retort.jobs.plan import record, words
from retort.jobs.plan.shapes import Plan
from retort.jobs.run import JobRun
from retort.metrics.comparison import ReportContent, as_json, flat_differences, read_content
from retort.metrics.comparison.shapes import Comparison
from retort.stages.report.rendering import PlanShown, page_of
from retort.store import Folder, InputFolder, Store
from retort.store.urls import public


def finish(job: JobRun, flow_run_id: str | None) -> ReportContent:
    """Returns the report of a run whose stages are all made, and leaves it in the store under the
    job's name. There it holds what belongs to this run alone, and what was found beside the job."""
    reported, latest = InputFolder(job.used["report"].uri), job.store.job(job.spec.name)
    content = _with_found(job.store, _of_this_run(job, reported, flow_run_id))
    files = {
        "report.json": json.dumps(as_json(content), indent=2, ensure_ascii=False).encode(),
        "report.html": _page(job.store, content, reported),
        **{name: reported.read(name) for name in ("report.md", "data_card.svg")},
    }
    for name, data in files.items():
        latest.write(name, data)
    job.tracker.close_job(_numbers(content.comparison), content.gate.passed, files)
    return content


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
    content = _with_found(store, read_content(raw))
    latest.write_json("report.json", as_json(content))
    latest.write("report.html", _page(store, content, reported))
    return True


def _of_this_run(job: JobRun, reported: Folder, flow_run_id: str | None) -> ReportContent:
    """Returns the report with what belongs to this run alone: artifacts and ids."""
    released = Folder(job.used["release"].uri).read_manifest()["facts"]
    return replace(
        read_content(reported.read_json("report.json")),
        fingerprints={name: artifact.name for name, artifact in job.used.items()},
        artifacts={name: artifact.uri for name, artifact in job.used.items()},
        mlflow={"tracking_uri": public(job.tracker.uri), "run_id": job.tracker.parent_id},
        prefect={"flow_run_id": flow_run_id},
        registered={
            "name": released["registered_model"],
            "version": released.get("model_version"),
            "compared_with": job.champion.version if job.champion else None,
        },
    )


def _with_found(store: Store, content: ReportContent) -> ReportContent:
    """Returns a report with the benchmarks and the plan of its student, as far as there are any."""
    plan = _plan_of(store, content)
    return replace(
        content,
        benchmarks=benchmark.of_student(store, content.name, content.fingerprints["train"]),
        plan=plan.as_json() if plan else None,
    )


def _page(store: Store, content: ReportContent, reported: Folder) -> bytes:
    """Returns the page of a report; `reported` is the report's artifact."""
    plan, shown = _plan_of(store, content), None
    if plan:
        picture = plan_page.picture(plan)
        shown = PlanShown(words.headline(plan), words.forecasts(plan), picture)
    return page_of(content, reported, shown)


def _plan_of(store: Store, content: ReportContent) -> Plan | None:
    """Returns a job's last plan, where it is of one of the report's trainings."""
    plan = record.latest(store.job(content.name))
    return plan if plan and plan.points[-1].train in content.fingerprints.values() else None


def _numbers(found: Comparison) -> dict[str, float]:
    """Returns the numbers of the comparison, as MLflow metrics."""
    plain = {key: float(v) for key, v in vars(found).items() if isinstance(v, int | float)}
    return plain | flat_differences(found.differences)
