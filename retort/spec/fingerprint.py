"""The name of an artifact: sha256 of its stage, the stage's version, knobs and inputs' names.

Content, not addresses: a source file or model counts by its digest, so moving the store, the data
or the job file keeps every cache. `runtime` knobs stay out.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from retort.records import JsonObject
from retort.spec import rounds
from retort.spec.job import (
    CONTROLS,
    OFFLINE_COST,
    ROUND_CONTROLS,
    STAGES,
    JobSpec,
    StageName,
    capture_of,
    evaluation_of,
    export_of,
    training_of,
)
from retort.spec.section import ADDED_LATER, Section

# Raised by hand when a stage's results change for the same spec.
VERSIONS: dict[StageName, int] = dict.fromkeys(STAGES, 1) | {
    "prepare": 6,
    "generate": 2,
    "curate": 3,
    "evaluate": 3,
    "report": 4,
    "release": 3,
}
# The champion of the student's name is measured apart, so that a new one measures nobody anew.
CHAMPION, EVALUATE_CHAMPION, UNREADABLE = "champion", "evaluate-champion", "unreadable"

# The input of an evaluation that scores the student of one trial on the validation examples.
TRIAL = "train-trial"

# Which artifacts a stage reads: the data-flow graph of the job, in one place. A control is a second
# `train`; those that look at the student (evaluate, report) look at it too.
INPUTS: dict[StageName, tuple[StageName, ...]] = {
    "prepare": (),
    "expand": ("prepare",),
    "generate": ("prepare",),
    "curate": ("prepare", "generate"),
    "cut": ("prepare", "generate", "curate"),
    "train": ("prepare", "generate", "curate"),
    "export": ("prepare", "generate", "curate", "train"),
    "evaluate": ("prepare", "train"),
    "report": ("prepare", "generate", "curate", "train", "evaluate"),
    "release": ("prepare", "curate", "train", "report"),
}

# Those that read the base, where that is an artifact too.
READ_BASE: tuple[StageName, ...] = ("train", "evaluate", "report")

# Knobs of generate that decide whether the teacher agrees with itself on a new prompt.
ASKED_TO_AGREE = ("max_tokens", "max_model_len", "reasoning", "instruction", "dtype")

# Knobs that are addresses, or `auto`: what they stand for counts, through `sources`.
ADDRESSES = {
    ("prepare", "train"),
    ("prepare", "validation"),
    ("prepare", "test"),
    ("prepare", "decontaminate", "against"),
    ("expand", "writer", "model"),
    ("expand", "writer", "engine"),
    ("expand", "writer", "endpoint"),
    ("expand", "writer", "api_key_env"),
    ("curate", "judge", "model"),
    ("curate", "judge", "engine"),
    ("curate", "judge", "endpoint"),
    ("curate", "judge", "api_key_env"),
    ("curate", "second_teacher", "model"),
    ("curate", "second_teacher", "engine"),
    ("curate", "second_teacher", "endpoint"),
    ("curate", "second_teacher", "api_key_env"),
    ("generate", "teacher"),
    ("train", "student"),
    ("generate", "engine"),
    ("generate", "endpoint"),
    ("generate", "api_key_env"),
    ("evaluate", "engine"),
    ("evaluate", "judge", "model"),
    ("evaluate", "judge", "engine"),
    ("evaluate", "judge", "endpoint"),
    ("evaluate", "judge", "api_key_env"),
    ("evaluate", "graders", "file"),
    ("evaluate", "graders", "judge", "model"),
    ("evaluate", "graders", "judge", "engine"),
    ("evaluate", "graders", "judge", "endpoint"),
    ("evaluate", "graders", "judge", "api_key_env"),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a stage makes: the ingredients of its fingerprint.

    `spec` is the job as the stage sees it: a control's says what the control learns.
    """

    stage: StageName
    ingredients: JsonObject = field(hash=False)
    spec: JobSpec = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        """The artifact's name: the first 16 hex digits of the fingerprint."""
        text = json.dumps(self.ingredients, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def inputs(self) -> tuple[str, ...]:
        """What it reads, by the names under which `recipes` gives their recipes."""
        return tuple(self.ingredients["inputs"])


def recipes(
    spec: JobSpec, sources: dict[str, str], champion: str | None = None
) -> dict[str, Recipe]:
    """Returns the recipe of every stage of a job, in order: each control's after the student's.
    There is a `cut` only where the student is cut from its teacher, and an `expand` only where a
    model writes further prompts: it holds the others too, and is then read in place of `prepare`.

    A control's recipe stands under the name of its training (`train-fine_tuning`) and is that of a
    job which trains nothing else, so that the two share an artifact. `sources` maps each address in
    the spec ("prepare.train", "generate.teacher" ...) to the digest of what it points to.
    `champion` is the digest of the champion's folder, which is then evaluated too
    (`evaluate-champion`), or UNREADABLE, which the report tells. Of several teachers each has a
    capture of its own (`generate-math`), and `generate` is their union. Each format has an export
    and an evaluation of its own (`export-gguf-q4_0`, `evaluate-gguf-q4_0`), so that a further one
    costs only these.
    """
    made: dict[str, Recipe] = {}
    for stage in STAGES:
        if (stage == "cut" and not spec.cut) or (stage == "expand" and not spec.expand):
            continue
        if stage == "export":
            # The user's own formats count for none but themselves.
            ours = {key: digest for key, digest in sources.items() if key != "export.plug_ins"}
            for role, name in spec.exports.items():
                known = sources if "." in name.partition(":")[0] else ours
                found = _recipe(stage, spec.exporting(name), known, made)
                made[export_of(role)] = found
            continue
        if stage == "generate" and spec.generate.teachers:
            _add_captures(spec, sources, made)
            continue
        if stage == "train":
            _add_trainings(spec, sources, made)
            continue
        made[stage] = _recipe(stage, spec, sources, made)
        if stage == "evaluate":
            for role in spec.exports:
                made[evaluation_of(role)] = _of_export(made, role)
            if champion not in (None, UNREADABLE):
                made[EVALUATE_CHAMPION] = _of_champion(made, champion)
        elif stage == "report" and champion:
            made[stage] = _beside_champion(made, champion)
    return made


def _add_captures(spec: JobSpec, sources: dict[str, str], made: dict[str, Recipe]) -> None:
    """Adds the recipe of each teacher's capture, which is that of a job with this teacher alone
    where it answers every row, and the recipe of their union.

    Those who score what the first one wrote read its capture.
    """
    route = spec.generate.route
    assert route
    for name in route.order:
        own = spec.taught_by(name)
        known = {key: sources[f"{key}s.{name}"] for key in ("generate.teacher", "generate.engine")}
        found = _recipe("generate", own, {**sources, **known}, made)
        knobs, inputs = found.ingredients["knobs"], found.ingredients["inputs"]
        del knobs["teachers"], knobs["route"]
        knobs |= route.rows_of(name)
        if route.by == "all" and name != route.order[0]:
            inputs[capture_of(route.order[0])] = made[capture_of(route.order[0])].name
        made[capture_of(name)] = found
    union = _recipe("generate", spec, {}, made).ingredients
    union["knobs"] = {
        "route": route.model_dump(mode="json"),
        "shard_size": spec.generate.shard_size,
    }
    union["inputs"] |= {capture_of(name): made[capture_of(name)].name for name in route.order}
    made["generate"] = Recipe("generate", union, spec)


def _add_trainings(spec: JobSpec, sources: dict[str, str], made: dict[str, Recipe]) -> None:
    """Adds the recipes of the student and of each control."""
    if spec.train.on_policy:
        _add_rounds(spec, sources, made)
    else:
        made["train"] = _recipe("train", spec, sources, made)
    # The user's own losses are the student's alone.
    plain = {key: digest for key, digest in sources.items() if key != "train.plug_ins"}
    for control in spec.controls:
        if control in ROUND_CONTROLS:
            found = _of_round_control(spec, control, sources, made)
        else:
            own = plain if control in CONTROLS else sources
            found = _recipe("train", spec.control(control), own, made)
        made[training_of(control)] = found


def _add_rounds(spec: JobSpec, sources: dict[str, str], made: dict[str, Recipe]) -> None:
    """Adds the recipes of the offline phase, which is that of a job without rounds, and of each
    round: the student's answers, the teacher's scores, and what the student learns from them.

    How many rounds there are counts for none but those in which the step size falls.
    """
    knobs_of = spec.train.on_policy
    assert knobs_of
    engine = {"generate.engine": sources.get(rounds.ENGINE, sources["generate.engine"])}
    made[rounds.OFFLINE] = _recipe("train", rounds.offline(spec), sources, made)
    own = {key: digest for key, digest in sources.items() if key != "train.student"}
    for number in range(1, knobs_of.rounds + 1):
        before = rounds.student_after(spec, number - 1)
        answers, scored = rounds.rollouts_of(number), rounds.scores_of(number)
        found = _recipe("generate", rounds.rollouts(spec, number), engine, made)
        asked = {"round": number, "prompts": knobs_of.prompts, "held_out": knobs_of.held_out}
        found.ingredients["knobs"]["on_policy"] = {**asked, "seed": spec.train.seed}
        _reads(found, made, "generate", "curate", before)
        made[answers] = found
        made[scored] = _recipe("generate", rounds.scores(spec, number), sources, made)
        _reads(made[scored], made, answers, before)
        found = _recipe("train", rounds.update(spec, number), own, made)
        of_round = found.ingredients["knobs"]["on_policy"]
        of_round.pop("engine", None)
        for name in ("rounds", "decay", "losses", "learning_rate"):
            del of_round[name]
        of_round |= {"round": number, "learning_rates": knobs_of.learning_rates(number)}
        # And the student before that one: where answers went wrong, it is the one that stays.
        last_but_one = [rounds.student_after(spec, number - 2)] if number > 1 else []
        _reads(found, made, *last_but_one, before, answers, scored)
        made[rounds.student_after(spec, number)] = found


def _of_round_control(
    spec: JobSpec, control: str, sources: dict[str, str], made: dict[str, Recipe]
) -> Recipe:
    """Returns the recipe of going on without rounds. It reads how many steps these took, or all of
    their artifacts, which know their seconds."""
    found = _recipe("train", rounds.control(spec), sources, made)
    found.ingredients["knobs"]["control"] = control
    read = [rounds.OFFLINE, "train"]
    if control == OFFLINE_COST:
        read += [name for name in made if name.startswith(rounds.PARTS)]
    _reads(found, made, *read)
    return found


def _reads(recipe: Recipe, made: dict[str, Recipe], *names: str) -> None:
    """Adds inputs to a recipe."""
    recipe.ingredients["inputs"] |= {name: made[name].name for name in names}


def _of_export(made: dict[str, Recipe], role: str) -> Recipe:
    """Returns the recipe of asking an exported student as `evaluate` asks the job's own models, by
    the runtime of its format. The student is an input, because the two are compared."""
    asking, export = made["evaluate"].ingredients, made[export_of(role)]
    others = ("generate.teacher", "train.student", "evaluate.engine")
    sources = {key: digest for key, digest in asking["sources"].items() if key not in others}
    names = (examples_of(made), "train", export_of(role))
    inputs = {name: made[name].name for name in names}
    ingredients = {**asking, "sources": sources, "inputs": inputs}
    return Recipe("evaluate", ingredients, export.spec)


def _of_champion(made: dict[str, Recipe], champion: str) -> Recipe:
    """Returns the recipe of asking the champion as `evaluate` asks the job's own models, which
    count for nothing in it."""
    asking = made["evaluate"].ingredients
    own = ("generate.teacher", "train.student")
    sources = {key: digest for key, digest in asking["sources"].items() if key not in own}
    examples = examples_of(made)
    inputs = {examples: made[examples].name, CHAMPION: champion}
    return replace(made["evaluate"], ingredients={**asking, "sources": sources, "inputs": inputs})


def of_trial(made: dict[str, Recipe], train: Recipe) -> Recipe:
    """Returns the recipe of scoring the student of a trial on the validation examples: `made` are
    the job's own recipes. The knobs that measure speed, or further metrics, do not count."""
    asking = made["evaluate"].ingredients
    own = ("task_type", "max_tokens", "max_model_len", "dtype", "seed")
    names = (examples_of(made), "generate")
    inputs = {name: made[name].name for name in names} | {TRIAL: train.name}
    sources = {k: v for k, v in asking["sources"].items() if k == "evaluate.engine"}
    found = {"split": "validation", **{name: asking["knobs"][name] for name in own}}
    ingredients = {**asking, "knobs": found, "sources": sources, "inputs": inputs}
    return Recipe("evaluate", ingredients, made["evaluate"].spec)


def _beside_champion(made: dict[str, Recipe], champion: str) -> Recipe:
    """Returns the recipe of a report beside a champion: it reads what that answered, if it can."""
    plain = made["report"].ingredients
    inputs = {**plain["inputs"], CHAMPION: champion}
    if EVALUATE_CHAMPION in made:
        inputs[EVALUATE_CHAMPION] = made[EVALUATE_CHAMPION].name
    return replace(made["report"], ingredients={**plain, "inputs": inputs})


def _recipe(
    stage: StageName, spec: JobSpec, sources: dict[str, str], made: dict[str, Recipe]
) -> Recipe:
    """Returns a stage's recipe, given those of the stages before it."""
    further = [training_of(name) for name in spec.controls if stage in ("evaluate", "report")]
    if spec.cut and stage in READ_BASE:
        further.append("cut")
    if stage in ("report", "release"):
        further += [export_of(role) for role in spec.exports]
    if stage == "report":
        further += [evaluation_of(role) for role in spec.exports]
    needs = [examples_of(made) if name == "prepare" else name for name in INPUTS[stage]]
    ingredients = {
        "stage": stage,
        "version": VERSIONS[stage],
        "knobs": knobs(spec, stage),
        "sources": {k: v for k, v in sources.items() if k in _sources_of(stage)},
        "inputs": {needed: made[needed].name for needed in (*needs, *further)},
    }
    return Recipe(stage, ingredients, spec)


def examples_of(made: Collection[str]) -> str:
    """Returns which of a job's artifacts, or of a stage's inputs, holds its examples."""
    return "expand" if "expand" in made else "prepare"


def knobs(spec: JobSpec, stage: StageName) -> JsonObject:
    """Returns the knobs of a stage that change its result, defaults resolved."""
    section = _without_new(getattr(spec, stage))
    found = _content(section, (stage,))
    if stage == "expand":
        # The teacher's answers, which must agree, are those of a job that asks for text alone.
        own = _content(_without_new(spec.generate), ("generate",))
        found["generate"] = {name: own[name] for name in ASKED_TO_AGREE}
    if stage == "curate":
        # A filter's files count by their content, which is among the sources.
        found["filters"] = [
            {key: value for key, value in chosen.items() if not key.endswith("_file")}
            for chosen in section["filters"]
        ]
    if stage == "train":
        found["losses"] = [loss.model_dump(mode="json") for loss in spec.losses]
        del found["controls"]  # they are compared with the student, which learns nothing of them
        if not spec.is_live:
            del found["live_top_k"]
            found["teacher"] = "stored"
    if stage == "evaluate":
        found["task_type"] = spec.prepare.task_type
        found["max_tokens"] = spec.evaluate.max_tokens or spec.generate.max_tokens
        found["max_model_len"] = spec.evaluate.max_model_len or spec.generate.max_model_len
    if stage == "report" and spec.report.prices.teacher is None:
        # What the teacher's answers would cost is then what they did.
        spending = spec.generate.spending.model_dump(mode="json")
        found["prices"]["teacher"] = {k: v for k, v in spending.items() if k.startswith("price")}
    if stage in ("report", "release"):
        found["name"] = spec.name
    return found


def _without_new(section: Section) -> JsonObject:
    """Returns a section as JSON, without the knobs that were added later and have their default."""
    values = section.model_dump(mode="json")
    for name, knob in type(section).model_fields.items():
        value, extra = getattr(section, name), knob.json_schema_extra
        if isinstance(extra, dict) and extra.get(ADDED_LATER) and value == knob.get_default():
            del values[name]
        elif isinstance(value, Section):
            values[name] = _without_new(value)
    return values


def _content(section: JsonObject, at: tuple[str, ...]) -> JsonObject:
    """Returns the knobs of a section, and of those in it, that are no addresses."""
    return {
        key: _content(value, (*at, key)) if isinstance(value, dict) else value
        for key, value in section.items()
        if key not in ("runtime", "spending") and (*at, key) not in ADDRESSES
    }


def differences(old: JsonObject, new: JsonObject, prefix: str = "") -> list[str]:
    """Returns one line for each ingredient that differs: its name, the old and the new value."""
    lines: list[str] = []
    for key in sorted({*old, *new}):
        was, now = old.get(key), new.get(key)
        if was == now:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            lines += differences(was, now, f"{prefix}{key}.")
        else:
            lines.append(f"{prefix}{key}: {json.dumps(was)} -> {json.dumps(now)}")
    return lines


def _sources_of(stage: StageName) -> set[str]:
    own = {".".join(address) for address in ADDRESSES if address[0] == stage}
    own.add(f"{stage}.plug_ins")
    if stage == "expand":
        own |= {"expand.writer", "generate.teacher", "generate.engine"}
    if stage == "curate":
        own |= {"curate.judge", "curate.second_teacher"}
    if stage == "evaluate":
        own |= {"evaluate.judge", "evaluate.graders.judge"}
    # The teacher and the base are evaluated too, and the teacher may be cut.
    of_models = {"evaluate": {"generate.teacher", "train.student"}, "cut": {"generate.teacher"}}
    return own | of_models.get(stage, set())
