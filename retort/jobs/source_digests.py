"""The digests of everything a spec points to: rows, models, plug-ins, files of filters.

They are ingredients of the artifacts' names, so that content counts and addresses do not.
"""

from retort.data import sources
from retort.engines import find_engine, resolve
from retort.plugins import source_digest
from retort.records import SPLITS, sha256_of
from retort.spec import JobSpec, StageName, rounds
from retort.stages import engine_settings
from retort.store import model_folder


def source_digests(spec: JobSpec) -> dict[str, str]:
    """Returns the digest of everything the spec points to, by the knob that points to it.

    Raises `SpecError` for a file or a model that is not there.
    """
    found: dict[str, str] = {}
    for split in SPLITS:
        source, where = getattr(spec.prepare, split), f"prepare.{split}"
        found[where] = sources.digest(source, where) if source is not None else "none"
    if against := spec.prepare.decontaminate.against:
        where = "prepare.decontaminate.against"
        found[where] = sources.digest(against, where)
    for stage, names in plug_ins(spec).items():
        digests = {name: source_digest(name) for name in names if ":" in name or "." in name}
        digests |= _filter_files(spec) if stage == "curate" else {}
        if digests:
            found[f"{stage}.plug_ins"] = sha256_of(digests)
    if graders := spec.evaluate.graders:
        where = "evaluate.graders.file"
        found[where] = sources.digest(graders.file, where)
    for where, model in spec.consulted_models.items():
        engine = resolve(model.engine, 0)
        name = engine_settings.model_digest(find_engine(engine), model.model, model.endpoint, where)
        found[where] = f"{engine}: {name}"
    found["generate.engine"] = resolve(spec.generate.engine, spec.generate.top_k)
    if spec.train.on_policy:
        asked = rounds.rollouts(spec, 1).generate
        if asked.engine != spec.generate.engine:
            found[rounds.ENGINE] = resolve(asked.engine, asked.top_k)
    found["evaluate.engine"] = resolve(spec.evaluate.engine, 0)
    found["generate.teacher"] = engine_settings.teacher_digest(spec)
    for name in spec.generate.teachers:
        own = spec.taught_by(name)
        found[f"generate.engines.{name}"] = resolve(own.generate.engine, own.generate.top_k)
        found[f"generate.teachers.{name}"] = engine_settings.teacher_digest(own)
    if spec.cut is None:
        found["train.student"] = model_folder.digest(spec.base, "train.student")
    return found


def plug_ins(spec: JobSpec) -> dict[StageName, list[str]]:
    """Returns the names of a job's plug-ins, ours and others, by the stage that they decide."""
    return {
        "prepare": [spec.prepare.task_type, spec.prepare.format, *spec.prepare.scrub],
        "curate": [spec.prepare.task_type, *(chosen.name for chosen in spec.curate.filters)],
        "train": [loss.name for loss in spec.losses],
        "export": [name.rpartition(":")[0] for name in spec.export.formats],
        "evaluate": [spec.prepare.task_type, *spec.evaluate.metrics],
    }


def _filter_files(spec: JobSpec) -> dict[str, str]:
    """Returns the digest of each file that an option of a filter names: those ending in _file."""
    return {
        f"{chosen.name}.{option}": sources.digest(path, f"curate.filters {chosen.name}.{option}")
        for chosen in spec.curate.filters
        for option, path in chosen.options.items()
        if option.endswith("_file") and path
    }
