"""The numbers of the comparison: ratios of student and teacher, and the controls' warnings."""

from retort.metrics.comparison import shapes
from retort.spec import RANDOM_START, WITHOUT, WITHOUT_LOSS

CONTROLS = {
    "fine_tuning": "plain fine-tuning on the same rows",
    "gold": "plain fine-tuning on the rows' own answers",
    "offline_steps": "learning on from stored rows, as many steps as the rounds",
    "offline_cost": "learning on from stored rows, for as long as the rounds took",
    RANDOM_START: "itself from random weights",
}
WAYS_OUT = {
    "fine_tuning": "its losses made the student worse; use plain fine-tuning (train.losses: "
    "[{name: cross_entropy}]), or look at their weights and temperature",
    "gold": "those answers taught more than the teacher did; learn them (train.text: expected, "
    "train.losses: [{name: cross_entropy}]), or look at train.losses and the teacher's own score",
    "offline_steps": "the student's own answers taught less than the stored ones; take "
    "train.on_policy out and raise train.num_epochs, or make more and longer rounds",
    "offline_cost": "the same time over the stored rows gives more; take train.on_policy out and "
    "raise train.num_epochs, or look at what the rounds take",
    RANDOM_START: "what the base knew did not help; train longer, or take another base",
}
WAY_OUT = "they cost more than they gave; take this teacher out, or route less to it"
WAY_OUT_OF_LOSS = (
    "it takes more than it gives; take this loss out of train.losses, or weigh it less"
)


def is_control(role: str) -> bool:
    """Whether a model is one of the job's controls."""
    return role in CONTROLS or role.startswith(WITHOUT)


def control_name(role: str) -> str:
    """Returns what a control is, in words."""
    if role.startswith(WITHOUT_LOSS):
        return f"itself without the loss {role.removeprefix(WITHOUT_LOSS)}"
    return CONTROLS.get(role) or f"itself without the rows of {role.removeprefix(WITHOUT)}"


def _way_out(role: str) -> str:
    return WAYS_OUT.get(role, WAY_OUT_OF_LOSS if role.startswith(WITHOUT_LOSS) else WAY_OUT)


def main_metric(models: shapes.ModelsByRole) -> str:
    """Returns the metric that decides: the task type's first where answers are known, else
    agreement with the teacher."""
    return next(iter(models["teacher"].metrics))


def compare(
    evaluated: shapes.Evaluated, required_retention: float | None = None
) -> shapes.Comparison:
    """Returns retention (student / teacher) with its interval, gain (student - base), what is
    saved, and the differences of the student and each other model, all in the main metric.

    A reduction is 1 - student / teacher: of the median latency of whole answers, of the bytes of
    the weights, of the cost of 1,000 requests. What is unknown is None.
    """
    models = evaluated.models
    metric = main_metric(models)
    teacher, base, student = (models[role] for role in ("teacher", "base", "student"))
    scores = {role: models[role].metrics[metric].value for role in ("teacher", "base", "student")}
    return shapes.Comparison(
        metric=metric,
        retention=_ratio(scores["student"], scores["teacher"]),
        retention_interval=evaluated.retention.get(metric),
        gain=scores["student"] - base.metrics[metric].value,
        latency_reduction=_reduction(median_seconds(student), median_seconds(teacher)),
        memory_reduction=_reduction(student.weights_bytes, teacher.weights_bytes),
        cost_reduction=_reduction(student.cost_per_1000_requests, teacher.cost_per_1000_requests),
        throughput_ratio=_ratio(student.tokens_per_second, teacher.tokens_per_second),
        differences={
            role: by_metric[metric]
            for role, by_metric in evaluated.differences.items()
            if metric in by_metric
        },
        required_retention=required_retention,
    )


def median_seconds(model: shapes.MeasuredModel) -> float | None:
    """Returns a model's median seconds to a whole answer, None where it was not measured."""
    return None if model.latency_seconds is None else model.latency_seconds.p50


def _ratio(student: float | None, teacher: float | None) -> float | None:
    return None if student is None or not teacher else student / teacher


def _reduction(student: float | None, teacher: float | None) -> float | None:
    ratio = _ratio(student, teacher)
    return None if ratio is None else 1 - ratio


def flat_differences(differences: shapes.Differences) -> dict[str, float]:
    """Returns the differences as MLflow metrics: `difference.base`, with `_low` and `_high`."""
    return {
        f"difference.{role}{end}": value
        for role, difference in differences.items()
        for end, value in (
            ("", difference.value),
            ("_low", difference.low),
            ("_high", difference.high),
        )
    }


def warnings(comparison: shapes.Comparison) -> list[str]:
    """Returns what to do about each control that the student scores below."""
    return [
        f"the student is below {control_name(role)}: {_way_out(role)}"
        for role, difference in comparison.differences.items()
        if is_control(role) and difference.outcome == "below"
    ]
