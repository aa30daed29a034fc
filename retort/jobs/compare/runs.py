"""A run to compare: its report, wherever that lies, and the scores behind it.

The scores may be out of reach, as where a report was sent by itself; then the run is compared by
its report alone.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from retort.errors import DataError, SpecError, StoreError, did_you_mean
from retort.metrics.comparison import ReportContent, read_content
from retort.records import sha256_of
from retort.stages.stage import read_examples
from retort.store import MANIFEST, Folder, Store, read_url

REPORT = "report.json"
ROLES = ("teacher", "base", "student")


@dataclass(frozen=True)
class Run:
    """A finished job: `label` names it among those compared, `place` is its report's address."""

    label: str
    place: str
    content: ReportContent = field(repr=False)

    @property
    def metric(self) -> str:
        """The metric that decides."""
        return self.content.comparison.metric

    def artifact(self, stage: str) -> Folder | None:
        """Returns the folder of an artifact of this run: where the report says, or beside it where
        the whole store was moved. None where neither can be read."""
        places = [self.content.artifacts.get(stage)]
        name = self.content.fingerprints.get(stage)
        if name and self.place.count("/") > 2:
            places.append(f"{self.place.rsplit('/', 3)[0]}/artifacts/{stage}/{name}")
        for uri in filter(None, places):
            folder = Folder(uri)
            try:
                if folder.has(MANIFEST):
                    return folder.checked()
            except (StoreError, SpecError, ImportError):
                continue
        return None

    def statistics(self) -> dict[str, list[float]] | None:
        """Returns the student's statistics of the metric that decides, by example; None where they
        cannot be read."""
        folder, name = self.artifact("evaluate"), "statistics-student.json"
        if folder is None or not folder.has(name):
            return None
        statistics: dict[str, list[float]] | None = folder.read_json(name).get(self.metric)
        return statistics

    def questions(self, ids: set[str]) -> dict[str, str] | None:
        """Returns the digest of each scored example's question and answer, for ids alone do not
        suffice: every file may count its rows from 0. None where they cannot be read."""
        folder = self.artifact("prepare")
        if folder is None:
            return None
        return {
            example.id: sha256_of([example.messages, example.expected, example.options])
            for example in read_examples(folder, self.content.data.split)
            if example.id in ids
        }


def find(store: Store, names: list[str]) -> list[Run]:
    """Returns the runs behind job names, folders, and paths or URLs of a report.json.

    Raises `SpecError` for one that is not there, `DataError` for what is no report or one of an
    older form.
    """
    runs = [_read(store, name) for name in names]
    labels = [run.label for run in runs]
    return [
        replace(run, label=f"{run.label} #{labels[: at + 1].count(run.label)}")
        if labels.count(run.label) > 1 or run.label in ROLES
        else run
        for at, run in enumerate(runs)
    ]


def _read(store: Store, name: str) -> Run:
    place = _place(store, name)
    try:
        content = json.loads(read_url(place))
    except (FileNotFoundError, StoreError) as error:
        raise SpecError(f"{name}: {place} cannot be read ({error})") from None
    except ValueError as error:
        raise DataError(f"{name}: {place} is no JSON ({error})") from None
    try:
        return Run(str(content["name"]), place, read_content(content))
    except (KeyError, TypeError, ValidationError) as error:
        raise DataError(
            f"{name}: {place} is no report that can be compared ({_missing(error)}); it may have "
            "been made by an earlier Retort: run its job again"
        ) from None


def _missing(error: Exception) -> str:
    """Returns what a report lacks, or has in another form."""
    if not isinstance(error, ValidationError):
        return "it has no name"
    places = [".".join(map(str, each["loc"])) for each in error.errors()]
    return f"no {', '.join(places[:5])}" + (" ..." if len(places) > 5 else "")


def _place(store: Store, name: str) -> str:
    """Returns where a run's report lies."""
    if "/" not in name and store.job(name).has(REPORT):
        return f"{store.job(name).uri}/{REPORT}"
    if "://" in name:
        return name if name.endswith(".json") else f"{name.rstrip('/')}/{REPORT}"
    path = Path(name).expanduser()
    path = path / REPORT if path.is_dir() else path
    if path.is_file():
        return str(path.resolve())
    jobs = _jobs(store)
    there = f"there are: {', '.join(jobs)}" if jobs else "there is none yet"
    raise SpecError(
        f"{name}: no job of that name has a report in {store.uri}{did_you_mean(name, jobs)}, "
        f"{there}; it is no folder with a {REPORT} either"
    )


def _jobs(store: Store) -> list[str]:
    """Returns the names of the jobs with a report in a store."""
    parts = [path.split("/") for path in Folder(f"{store.uri}/jobs").files()]
    return [part[0] for part in parts if len(part) == 2 and part[1] == REPORT]
