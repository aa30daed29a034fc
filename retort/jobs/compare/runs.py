"""A run to compare: its report, wherever that lies, and the scores behind it.

The surprise: the scores may be out of reach, as where a report was sent by itself; then the run is
compared by its report alone.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retort.errors import DataError, SpecError, StoreError, did_you_mean
from retort.records import sha256_of
from retort.stages.stage import read_examples
from retort.store import MANIFEST, Folder, Store, read_url

REPORT = "report.json"
ROLES = ("teacher", "base", "student")
# What a report must hold to be compared, and in its part of that name.
NEEDED = ("name", "task_type", "models", "comparison", "gate", "data")
NEEDED_IN = {"comparison": ("metric", "retention_interval", "cost_reduction", "differences")}


@dataclass(frozen=True)
class Run:
    """A finished job: `label` names it among those compared, `place` is its report's address."""

    label: str
    place: str
    content: dict[str, Any] = field(repr=False)

    @property
    def metric(self) -> str:
        """The metric that decides."""
        return str(self.content["comparison"]["metric"])

    def artifact(self, stage: str) -> Folder | None:
        """Returns the folder of an artifact of this run: where the report says, or beside it where
        the whole store was moved. None where neither can be read."""
        places = [self.content.get("artifacts", {}).get(stage)]
        name = self.content.get("fingerprints", {}).get(stage)
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
        found: dict[str, list[float]] | None = folder.read_json(name).get(self.metric)
        return found

    def questions(self, ids: set[str]) -> dict[str, str] | None:
        """Returns the digest of what was asked and expected of each scored example, for ids alone
        do not tell: every file may count its rows from 0. None where it cannot be read."""
        folder = self.artifact("prepare")
        if folder is None:
            return None
        return {
            example.id: sha256_of([example.messages, example.expected, example.options])
            for example in read_examples(folder, self.content["data"]["split"])
            if example.id in ids
        }


def find(store: Store, names: list[str]) -> list[Run]:
    """Returns the runs behind job names, folders, and paths or URLs of a report.json.

    Raises `SpecError` for one that is not there, `DataError` for what is no report of today's form.
    """
    found = [_read(store, name) for name in names]
    labels = [run.label for run in found]
    return [
        replace(run, label=f"{run.label} #{labels[: at + 1].count(run.label)}")
        if labels.count(run.label) > 1 or run.label in ROLES
        else run
        for at, run in enumerate(found)
    ]


def _read(store: Store, name: str) -> Run:
    place = _place(store, name)
    try:
        content = json.loads(read_url(place))
    except (FileNotFoundError, StoreError) as error:
        raise SpecError(f"{name}: {place} cannot be read ({error})") from None
    except ValueError as error:
        raise DataError(f"{name}: {place} is no JSON ({error})") from None
    missing = [key for key in NEEDED if not isinstance(content, dict) or key not in content]
    missing = missing or [
        f"{part}.{key}"
        for part, keys in NEEDED_IN.items()
        for key in keys
        if key not in content[part]
    ]
    if missing:
        raise DataError(
            f"{name}: {place} is no report that can be compared (no {', '.join(missing)}); it may "
            "have been made by an earlier Retort: run its job again"
        )
    return Run(str(content["name"]), place, content)


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
