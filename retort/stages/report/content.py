"""The content of the report: all that it says, as JSON, pulled from the other stages' artifacts."""

from typing import Any

from retort.metrics.comparison import compare, too_few, unsure, warnings
from retort.metrics.comparison.verdict import OTHERS
from retort.spec import training_of
from retort.spec.fingerprint import CHAMPION, UNREADABLE
from retort.stages.report import licences, slices
from retort.stages.report.answers import Answered
from retort.stages.report.gate import judge
from retort.stages.stage import Stage
from retort.store import MODEL, urls

STAGES_READ = ("prepare", "generate", "curate", "train")
MOST_POINTS = 200
Record = dict[str, float]


def content_of(stage: Stage, evaluated: dict[str, Any], answered: Answered) -> dict[str, Any]:
    """Returns the report of all that was measured and answered; what belongs to one run is not in
    it."""
    policy = stage.spec.report.gate
    comparison = compare(evaluated) | {"required_retention": policy.min_retention}
    training = _training(stage, warnings(comparison))
    content = {
        "name": stage.spec.name,
        "task_type": stage.spec.prepare.task_type,
        "models": evaluated["models"],
        "latency_bound_seconds": evaluated.get("latency_bound_seconds"),
        "perplexity_of": evaluated.get("perplexity_of"),
        "comparison": comparison,
        "all_differences": evaluated["differences"],
        "champion": _champion(stage),
        "slices": slices.slices(answered, stage.spec.evaluate),
        "training": training,
        "data": _data(stage, evaluated),
        "ran": _ran(stage, evaluated),
    }
    content["gate"] = judge(content, policy)
    careful = [*_warnings(content), *evaluated.get("notes", [])]
    content["warnings"] = [*careful, *training["warnings"]]
    return content


def _training(stage: Stage, below: list[str]) -> dict[str, Any]:
    """Returns what the trainings learned from, their curves, and what to be warned of."""
    roles = ("student", *stage.spec.controls)
    return {
        "warnings": [*below, *_training_warnings(stage)],
        "controls": {name: _counts(stage, training_of(name)) for name in stage.spec.controls},
        "curves": {role: _curve(stage, training_of(role)) for role in roles},
    }


def _curve(stage: Stage, name: str) -> list[Record]:
    """Returns what was recorded of a training; of a long one evenly spread records, as many that
    were validated as others."""
    folder = stage.input(name)
    records: list[Record] = folder.read_json("history.json") if folder.has("history.json") else []
    validated = [record for record in records if "validation_loss" in record]
    others = [record for record in records if "validation_loss" not in record]
    return sorted([*_spread(validated), *_spread(others)], key=lambda record: record["step"])


def _spread(records: list[Record]) -> list[Record]:
    """Returns at most MOST_POINTS records and the last."""
    every = -(-len(records) // MOST_POINTS) or 1
    return [*records[:-1:every], *records[-1:]]


def _training_warnings(stage: Stage) -> list[str]:
    """Returns what the trainings warned of, and which control had less to learn from: one that
    went wrong is easily beaten."""
    own = stage.facts("train")
    found = list(own.get("warnings", []))
    for name in stage.spec.controls:
        control = stage.facts(training_of(name))
        found += [f"{name}: {text}" for text in control.get("warnings", [])]
        if control["num_train"] < own["num_train"]:
            found.append(
                f"{name} learned from {control['num_train']:,} rows and the student from "
                f"{own['num_train']:,}; the others have no answer that {name} could learn"
            )
    return found


def _data(stage: Stage, evaluated: dict[str, Any]) -> dict[str, Any]:
    """Returns what became of the rows."""
    return {
        "split": evaluated["split"],
        "num_examples": evaluated["num_examples"],
        **{name: _counts(stage, name) for name in STAGES_READ},
        "card": stage.input("curate").read_json("data_card.json"),
    }


def _counts(stage: Stage, name: str) -> dict[str, Any]:
    """Returns the counts among a stage's facts."""
    facts = stage.facts(name)
    return {key: v for key, v in facts.items() if key.startswith("num_") or key == "reasons"}


def _ran(stage: Stage, evaluated: dict[str, Any]) -> dict[str, Any]:
    """Returns what was run, where, and what it took. Nobody measures energy yet: it is unknown."""
    spec = stage.spec
    spending = stage.facts("generate").get("spending")
    prices = spec.generate.spending.model_dump()
    if spending and not any(v for name, v in prices.items() if name.startswith("price_")):
        spending = {**spending, "cost": None}
    given = {"teacher": spec.generate.teacher, "base": spec.train.student}
    return {
        "spec": _public(spec.model_dump(mode="json")),
        "versions": evaluated.get("versions"),
        "hardware": evaluated.get("hardware"),
        "licences": {role: licences.of(model) for role, model in given.items()},
        "money": spending,
        "seconds": {
            name: stage.input(name).read_manifest().get("seconds")
            for name in stage.inputs
            if name != CHAMPION  # it was made by another run, maybe elsewhere
        },
        "energy_joules": None,
    }


def _public(value: Any) -> Any:
    """Returns a part of a spec without what is secret in its addresses."""
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    return urls.public(value) if isinstance(value, str) else value


def _warnings(content: dict[str, Any]) -> list[str]:
    """Returns what to be careful about in the comparison itself."""
    comparison = content["comparison"]
    below = [
        f"the student scores below {who}"
        for role, who in {"champion": OTHERS["champion"], "base": "its base"}.items()
        if comparison["differences"].get(role, {}).get("outcome") == "below"
    ]
    engines = {model["engine"] for model in content["models"].values()}
    apart = ["the teacher was asked at its endpoint: its times include the network and its load"]
    return [
        *unsure(comparison),
        *too_few(comparison),
        *below,
        *slices.warnings(content["slices"], comparison["retention_interval"]),
        *(apart if len(engines) > 1 else []),
        *_licence_warnings(content["ran"]["licences"]),
    ]


def _licence_warnings(found: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"the licence of the {role} ({licence['license'] or 'unnamed'}) forbids distillation: "
        f"{licence['note']}"
        for role, licence in found.items()
        if licence["distillation"] == "forbidden"
    ]


def _champion(stage: Stage) -> dict[str, Any] | None:
    """Returns what the report says of the champion: where it lies, and whether it could be read."""
    found = stage.inputs.get(CHAMPION)
    if found is None:
        return None
    return {"source": f"{found.uri}/{MODEL}", "is_readable": found.name != UNREADABLE}
