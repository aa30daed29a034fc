"""Folders whose plug-ins the user trusts: a job file is not code, but the files beside it may be.

As an editor or a shell does, Retort runs code that comes with a folder only after the user has said
so once. What is trusted is a list of folders in the user's own configuration.
"""

import json
import os
from pathlib import Path

from retort import plugins
from retort.errors import SpecError
from retort.jobs.source_digests import plug_ins
from retort.processes.disk import for_owner, make_folder
from retort.spec import JobSpec, variants


def check(spec: JobSpec, folder: Path, trusts: bool) -> list[str]:
    """Lets plug-ins be files of a job's folder, where it is trusted; returns a line on each.

    A folder that the environment names already (`plugins.FOLDER`) is taken instead: whoever
    started this process trusts it. `trusts`: the user trusts the job's folder from now on. Raises
    `SpecError` where the job names such files and the folder is not trusted; then nothing of them
    was imported.
    """
    given = os.environ.get(plugins.FOLDER)
    folder = Path(given or folder).resolve()
    plugins.look_in(folder)
    beside = sorted(name for name in _named(spec) if plugins.is_beside(name))
    beside += _graders(spec, folder)
    if trusts and not given:
        _add(folder)
    if beside and not given and not is_trusted(folder):
        del os.environ[plugins.FOLDER]
        raise SpecError(
            f"the job names code in files beside it: {', '.join(beside)} in {folder}. It would run "
            "with your rights, so read it first; then give --trust once, and it is remembered for "
            "this folder"
        )
    return [f"plug-in {name}: code of {folder}" for name in beside]


def _graders(spec: JobSpec, folder: Path) -> list[str]:
    """Returns what to call the python graders of a job. Raises `SpecError` where their file lies
    outside the folder that is to be trusted."""
    graders = spec.evaluate.graders
    if graders is None or not graders.python:
        return []
    if not Path(graders.file).resolve().is_relative_to(folder):
        raise SpecError(
            f"evaluate.graders.file: {graders.file} holds code that evaluate.graders.python lets "
            f"run, but lies outside {folder}; put it there"
        )
    return [f"the python graders of {graders.file}"]


def look_in_own(folder: Path) -> None:
    """Lets plug-ins be files of a folder whose code runs already, unless another is set."""
    if not os.environ.get(plugins.FOLDER):
        plugins.look_in(folder)


def is_trusted(folder: Path) -> bool:
    """Whether the user has trusted a folder."""
    return str(folder.resolve()) in _folders()


def _named(spec: JobSpec) -> set[str]:
    """Returns the names of all plug-ins of a job, engines and what its sweep tries included."""
    engines = {spec.generate.engine, spec.evaluate.engine}
    engines |= {teacher.engine for teacher in spec.generate.teachers.values()}
    engines |= {model.engine for model in spec.consulted_models.values()}
    every = [plug_ins(each) for each in (spec, *variants.check(spec))]
    return engines | {name for each in every for names in each.values() for name in names}


def _list() -> Path:
    root = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(root) / "retort" / "trusted-folders.json"


def _folders() -> list[str]:
    """Returns the folders that are trusted; a list that cannot be read trusts none."""
    try:
        found = json.loads(_list().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return (
        [folder for folder in found if isinstance(folder, str)] if isinstance(found, list) else []
    )


def _add(folder: Path) -> None:
    folders = sorted({*_folders(), str(folder)})
    path = _list()
    make_folder(path.parent)
    with open(path, "w", encoding="utf-8", opener=for_owner) as stream:
        json.dump(folders, stream, indent=1)
