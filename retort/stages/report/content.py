"""The report's content, pulled from the other stages' artifacts, and what to be warned of."""

from collections import Counter
from dataclasses import asdict
from typing import Any

from retort.metrics.comparison import compare, shapes, too_few, unsure, warnings
from retort.metrics.comparison.verdict import OTHERS
from retort.records import JsonObject
from retort.spec import CONTROLS, WITHOUT, JobSpec, training_of
from retort.spec.fingerprint import CHAMPION, UNREADABLE
from retort.stages.budget import usage_note
from retort.stages.report import licences, slices
from retort.stages.report.gate import judge
from retort.stages.report.measurements import Answered, exported
from retort.stages.report.plots import Records
from retort.stages.stage import Stage, spent_on_prompts
from retort.stages.teachers import each_job
from retort.store import MODEL, urls

MOST_POINTS = 200


def content_of(
    stage: Stage, evaluated: shapes.Evaluated, answered: Answered
) -> shapes.ReportContent:
    """Returns what a report says of all that was measured and answered, whichever run shows it."""
    spec, models = stage.spec, evaluated.models
    comparison = compare(evaluated, spec.report.gate.min_retention)
    columns = slices.slices(answered, spec.evaluate)
    champion = _champion(stage)
    has_champion = champion is not None or CHAMPION in models
    training = _training(stage, warnings(comparison))
    ran = _ran(stage, evaluated)
    return shapes.ReportContent(
        name=spec.name,
        task_type=spec.prepare.task_type,
        models=models,
        comparison=comparison,
        gate=judge(models["student"], comparison, spec.report.gate, has_champion),
        data=shapes.DataContent(
            evaluated.split,
            evaluated.num_examples,
            card=stage.input("curate").read_json("data_card.json"),
            **{name: _counts(stage, name) for name in ("prepare", "generate", "curate", "train")},
        ),
        ran=ran,
        all_differences=evaluated.differences,
        latency_bound_seconds=evaluated.latency_bound_seconds,
        perplexity_of=evaluated.perplexity_of,
        champion=champion,
        exports=exported(stage, comparison.metric),
        slices=columns,
        training=training,
        teachers=_teachers(stage, comparison.differences),
        warnings=[
            *_comparison_warnings(comparison, columns),
            *_endpoint_warning(evaluated),
            *filter(None, [usage_note(asdict(ran.money)) if ran.money else ""]),
            *_licence_warnings(ran.licences),
            *_first_teacher_warning(stage),
            *_fusion_warning(stage),
            *_cut_warning(stage),
            *evaluated.notes,
            *training.warnings,
        ],
    )


def _training(stage: Stage, below: list[str]) -> shapes.TrainingContent:
    """Returns what the trainings learned from, their curves, and what to be warned of."""
    roles = ("student", *stage.spec.controls)
    return shapes.TrainingContent(
        warnings=[*below, *_training_warnings(stage)],
        controls={name: _counts(stage, training_of(name)) for name in stage.spec.controls},
        curves={role: _curve(stage, training_of(role)) for role in roles},
        rounds=stage.facts("train").get("rounds", []),
    )


def _curve(stage: Stage, name: str) -> Records:
    """Returns what was recorded of a training; of a long one evenly spread records, as many that
    were validated as others."""
    folder = stage.input(name)
    names = [each for each in ("phases.json", "history.json") if folder.has(each)]
    records: Records = folder.read_json(names[0]) if names else []
    validated = [record for record in records if "validation_loss" in record]
    others = [record for record in records if "validation_loss" not in record]
    return sorted([*_spread(validated), *_spread(others)], key=lambda record: record["step"] or 0)


def _spread(records: Records) -> Records:
    """Returns at most MOST_POINTS records and the last."""
    every = -(-len(records) // MOST_POINTS) or 1
    return [*records[:-1:every], *records[-1:]]


def _training_warnings(stage: Stage) -> list[str]:
    """Returns the trainings' own warnings, and which control had fewer rows to learn from: such a
    control is easily beaten."""
    own = stage.facts("train")
    notes = list(own.get("warnings", []))
    for name in stage.spec.controls:
        control = stage.facts(training_of(name))
        notes += [f"{name}: {text}" for text in control.get("warnings", [])]
        if name in CONTROLS and control["num_train"] < own["num_train"]:
            notes.append(
                f"{name} learned from {control['num_train']:,} rows and the student from "
                f"{own['num_train']:,}; the others have no answer that {name} could learn"
            )
    return notes


def _counts(stage: Stage, name: str) -> JsonObject:
    """Returns the counts among a stage's facts."""
    facts = stage.facts(name)
    return {key: v for key, v in facts.items() if key.startswith("num_") or key == "reasons"}


def _ran(stage: Stage, evaluated: shapes.Evaluated) -> shapes.RunContent:
    """Returns what was run, where, and what it took."""
    spec = stage.spec
    return shapes.RunContent(
        spec=_public(spec.model_dump(mode="json")),
        versions=evaluated.versions,
        hardware=evaluated.hardware,
        licences={
            **{
                f"teacher {name}".strip(): licences.of(own.generate.teacher)
                for name, own in each_job(spec).items()
            },
            "base": licences.of(spec.base),
        },
        money=_teacher_cost(stage),
        seconds={
            name: stage.input(name).read_manifest().get("seconds")
            for name in stage.inputs
            if name != CHAMPION  # it was made by another run, maybe elsewhere
        },
    )


def _teacher_cost(stage: Stage) -> shapes.TeacherCost | None:
    """Returns what the teacher's answers took, those to held-out rows too where they were paid for,
    and what it wrote where it made prompts; without a price their cost is unknown."""
    sums = Counter[str](stage.facts("generate").get("spending"))
    sums.update(stage.facts("evaluate").get("spending"))
    sums.update(spent_on_prompts(stage))
    spending: JsonObject = dict(sums)
    if not spending:
        return None
    is_priced = any(_is_priced(own) for own in each_job(stage.spec).values())
    return shapes.TeacherCost(**spending | ({} if is_priced else {"cost": None}))


def _is_priced(spec: JobSpec) -> bool:
    """Whether the teacher of a job has a price."""
    prices = spec.generate.spending.model_dump()
    return any(value for name, value in prices.items() if name.startswith("price_"))


def _teachers(
    stage: Stage, differences: dict[str, shapes.Difference]
) -> dict[str, shapes.TeacherWorth]:
    """Returns what each of several teachers was worth; nothing where there is one."""
    jobs, learned = each_job(stage.spec), stage.facts("train").get("of_teachers", {})
    kept = stage.facts("curate").get("num_kept_of", {})
    found = {}
    for name, own in stage.facts("generate").get("teachers", {}).items():
        of_student = learned.get(name, {})
        found[name] = shapes.TeacherWorth(
            jobs[name].generate.teacher,
            own["engine"],
            own["num_responses"],
            kept.get(name, 0),
            kept.get(name, 0) / max(sum(kept.values()), 1),
            own["num_tokens"],
            own["spending"]["cost"] if _is_priced(jobs[name]) else None,
            of_student.get("num_validation", 0),
            of_student.get("validation_loss"),
            differences.get(f"{WITHOUT}{name}"),
        )
    return found


def _public(value: Any) -> Any:
    """Returns a part of a spec without the secrets in its addresses."""
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    return urls.public(value) if isinstance(value, str) else value


def _comparison_warnings(
    comparison: shapes.Comparison, columns: list[shapes.ColumnSlices]
) -> list[str]:
    """Returns what to be careful about in the comparison itself."""
    below = [
        f"the student scores below {who}"
        for role, who in {CHAMPION: OTHERS[CHAMPION], "base": "its base"}.items()
        if role in comparison.differences and comparison.differences[role].outcome == "below"
    ]
    of_slices = slices.warnings(columns, comparison.retention_interval)
    return [*unsure(comparison), *too_few(comparison), *below, *of_slices]


def _endpoint_warning(evaluated: shapes.Evaluated) -> list[str]:
    if len({model.engine for model in evaluated.models.values()}) == 1:
        return []
    return ["the teacher answered at its endpoint: its times include the network and its load"]


def _licence_warnings(by_role: dict[str, shapes.Licence]) -> list[str]:
    return [
        f"the licence of the {role} ({licence.license or 'unnamed'}) forbids distillation: "
        f"{licence.note}"
        for role, licence in by_role.items()
        if licence.distillation == "forbidden"
    ]


def _first_teacher_warning(stage: Stage) -> list[str]:
    """Returns which of several teachers the comparison is with."""
    route = stage.spec.generate.route
    if not (route and route.order[1:]):
        return []
    return [
        f"the teacher of the comparison is {route.order[0]} alone, for all rows: what is kept of "
        f"its score says nothing of {', '.join(route.order[1:])}"
    ]


def _fusion_warning(stage: Stage) -> list[str]:
    """Returns how far fused signals may be off, where they are estimated."""
    fused = stage.facts("generate").get("fusion", {})
    if not fused.get("largest_bound"):
        return []
    return [
        f"the signals of {fused['num_fused']:,} answers are fused from several teachers' top k: "
        f"they are off by at most {fused['mean_bound']:.2g} in probability per token on average, "
        f"and {fused['largest_bound']:.2g} at most; a larger generate.top_k narrows it"
    ]


def _cut_warning(stage: Stage) -> list[str]:
    """Returns what was cut from the teacher, and what others found of such students."""
    if "cut" not in stage.inputs:
        return []
    facts = stage.facts("cut")
    layers = ", ".join(map(str, facts["layers"]))
    share = facts["parameters_after"] / facts["parameters_before"]
    return [
        f"the student began as layers {layers} of the teacher's {facts['num_layers']} "
        f"({share:.1%} of its parameters, KL {facts['kl'][facts['by']]:.3g} nats a token before it "
        "learned): published work finds such students fine for narrow tasks, while generative "
        "reasoning comes back slowly (arXiv:2602.01997)"
    ]


def _champion(stage: Stage) -> dict[str, str | bool] | None:
    """Returns where the champion lies, and whether it could be read; None where there is none."""
    champion = stage.inputs.get(CHAMPION)
    if champion is None:
        return None
    return {"source": f"{champion.uri}/{MODEL}", "is_readable": champion.name != UNREADABLE}
