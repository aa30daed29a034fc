"""The shapes of a report's content: what was measured, compared, judged and run.

Every page is made from them. `report.json` is their JSON: `as_json` writes it, `read_content` reads
it, also where an earlier version wrote it. None is unknown, sizes are bytes, times seconds.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from pydantic import TypeAdapter

from retort.metrics import tells
from retort.records import JsonObject, Split

# What belongs to one run only: an artifact's report.json does not hold it.
OF_ONE_RUN = (
    *("fingerprints", "artifacts", "mlflow", "prefect", "registered"),
    *("benchmarks", "plan"),
)


@dataclass(frozen=True)
class Estimate:
    """A metric, a difference or a ratio with its 95% interval, from `n` examples."""

    value: float
    low: float
    high: float
    n: int = 0

    @classmethod
    def of(cls, computed: Mapping[str, Any], **more: Any) -> Self:
        """Returns what a function of `retort.metrics` computed."""
        return cls(**computed, **more)


@dataclass(frozen=True)
class Difference(Estimate):
    """Student minus another model, paired example by example, with two-sided p-values.

    `mcnemar_p_value` is None unless answers are right or wrong. `outcome` follows from the interval
    where it is not given.
    """

    p_value: float | None = None
    mcnemar_p_value: float | None = None
    outcome: Literal["above", "below", "unclear"] | None = None

    def __post_init__(self) -> None:
        if self.outcome is None:
            object.__setattr__(self, "outcome", tells(vars(self)))


Differences = dict[str, Difference]  # by role


@dataclass(frozen=True)
class Latency:
    """Requests asked one at a time: median and 95th percentile, each with its interval."""

    p50: float | None = None
    p95: float | None = None
    low: float | None = None
    high: float | None = None
    p95_low: float | None = None
    p95_high: float | None = None
    n: int = 0


@dataclass(frozen=True)
class LoadLimit:
    """The highest rate at which 95% of whole answers keep the bound."""

    requests_per_second: float
    concurrency: int
    p95_seconds: float | None = None


@dataclass(frozen=True)
class ConfusionMatrix:
    """A row an expected label, a column a given one; the last column counts missing answers."""

    labels: list[str]
    counts: list[list[int]]


@dataclass(frozen=True)
class MeasuredModel:
    """What was measured of one model; `others` is what else its engine says.

    `latencies` holds the samples of `whole` answers and of the `first_token`.
    """

    model: str
    engine: str
    metrics: dict[str, Estimate]
    engine_version: str | None = None
    dtype: str | None = None
    max_model_len: int | None = None
    parameters: int | None = None
    weights_bytes: int | None = None
    peak_memory_bytes: int | None = None
    peak_gpu_memory_bytes: int | None = None
    load_seconds: float | None = None
    latency_seconds: Latency | None = None
    first_token_seconds: Latency | None = None
    latencies: dict[str, list[float]] | None = None
    requests_per_second: float | None = None
    tokens_per_second: float | None = None
    within_bound: LoadLimit | None = None
    num_tokens: int | None = None
    num_prompt_tokens: int | None = None
    confusion: ConfusionMatrix | None = None
    cost_per_1000_requests: float | None = None
    others: JsonObject = field(default_factory=dict)

    @classmethod
    def of(cls, measured: Mapping[str, Any]) -> Self:
        """Returns a model of what was measured, by the fields' names; anything else is of the
        others."""
        known = {each.name for each in fields(cls)}
        others = {name: value for name, value in measured.items() if name not in known}
        return cls(**{k: v for k, v in measured.items() if k in known}, others=others)

    def as_json(self) -> JsonObject:
        """Returns the model as report.json has it, the others beside what is known."""
        known = {name: value for name, value in asdict(self).items() if name != "others"}
        return self.others | known


ModelsByRole = dict[str, MeasuredModel]  # in the order of the columns


@dataclass(frozen=True)
class Evaluated:
    """Evaluate's facts: the models, and the student against each of them by role and metric."""

    models: ModelsByRole
    differences: dict[str, Differences]
    retention: dict[str, Estimate | None] = field(default_factory=dict)
    split: Split = "test"
    num_examples: int = 0
    latency_bound_seconds: float | None = None
    perplexity_of: str | None = None
    versions: JsonObject | None = None
    hardware: JsonObject | None = None
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> JsonObject:
        """Returns what `read_evaluated` reads."""
        models = {role: model.as_json() for role, model in self.models.items()}
        return {**asdict(self), "models": models}


@dataclass(frozen=True)
class Comparison:
    """The student against the others in the metric that decides; see `ratios.compare`."""

    metric: str
    retention: float | None
    gain: float
    retention_interval: Estimate | None = None
    latency_reduction: float | None = None
    memory_reduction: float | None = None
    cost_reduction: float | None = None
    throughput_ratio: float | None = None
    differences: Differences = field(default_factory=dict)
    required_retention: float | None = None


@dataclass(frozen=True)
class GateCheck:
    """One check of the gate; `reason` says why nothing was measured."""

    name: str
    required: str
    measured: int | float | None
    passed: bool
    reason: str | None = None


@dataclass(frozen=True)
class GateOutcome:
    """Whether the student may go out, and the checks that say so."""

    passed: bool
    checks: list[GateCheck]


@dataclass(frozen=True)
class ExportedStudent:
    """The student in another format, as it was measured; `against` holds export minus student and
    export minus teacher in the main metric, `check` whether it may go out, `facts` what was said of
    it when it was written."""

    format: str
    model: MeasuredModel
    check: GateCheck
    against: Differences = field(default_factory=dict)
    facts: JsonObject = field(default_factory=dict)


@dataclass(frozen=True)
class SliceValue:
    """The examples with one value in a metadata column: `metrics` holds the main metric by role.

    `difference` (student - teacher) and `retention` are None where nothing was scored.
    """

    value: str
    n: int
    metrics: dict[str, Estimate]
    difference: Difference | None = None
    retention: Estimate | None = None


@dataclass(frozen=True)
class ColumnSlices:
    """A metadata column's most frequent values, and how many `others` it has: `values`, `n`."""

    column: str
    values: list[SliceValue]
    others: dict[str, int]


@dataclass(frozen=True)
class TeacherWorth:
    """What one of several teachers gave, and took: responses, those learned from, `share` of all
    that are learned from, the tokens of its answers, their cost where it has a price.

    `student_loss` is the student's on the teacher's validation rows; `gain` the student minus the
    one that was trained without its rows, where that is a control of the job.
    """

    model: str
    engine: str
    num_responses: int
    num_kept: int
    share: float
    num_tokens: int
    cost: float | None = None
    num_validation: int = 0
    student_loss: float | None = None
    gain: Difference | None = None


@dataclass(frozen=True)
class TrainingContent:
    """What the trainings warned of, the controls' counts, each one's records by step, and what
    became of each on-policy round."""

    warnings: list[str] = field(default_factory=list)
    controls: dict[str, JsonObject] = field(default_factory=dict)
    curves: dict[str, list[dict[str, int | float | None]]] = field(default_factory=dict)
    rounds: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class DataContent:
    """The held-out examples, the stages' counts of rows, and the data card."""

    split: Split
    num_examples: int
    prepare: JsonObject = field(default_factory=dict)
    generate: JsonObject = field(default_factory=dict)
    curate: JsonObject = field(default_factory=dict)
    train: JsonObject = field(default_factory=dict)
    card: JsonObject = field(default_factory=dict)


@dataclass(frozen=True)
class Licence:
    """A model's licence, who says so, and whether others may learn from its answers."""

    license: str | None
    source: str
    distillation: Literal["allowed", "forbidden", "unknown"]
    note: str


@dataclass(frozen=True)
class TeacherCost:
    """What the teacher's answers took; `cost` is None where no price is given. The answers without
    usage are counted as long as they may be."""

    input_tokens: int
    output_tokens: int
    engine_seconds: float
    cost: float | None = None
    num_without_usage: int = 0


@dataclass(frozen=True)
class RunContent:
    """What was run, where, and how long each stage took; nothing measures energy yet."""

    spec: JsonObject
    versions: JsonObject | None = None
    hardware: JsonObject | None = None
    licences: dict[str, Licence] = field(default_factory=dict)
    money: TeacherCost | None = None
    seconds: dict[str, float | None] = field(default_factory=dict)
    energy_joules: float | None = None


@dataclass(frozen=True)
class BenchmarkTask:
    """A task of `n` questions, asked at most `limit`; `num_tasks` is 1 unless it is a group."""

    version: float | str | None
    num_fewshot: int | None
    limit: int | None
    n: int
    num_tasks: int
    higher_is_better: dict[str, bool]


@dataclass(frozen=True)
class BenchmarkScore:
    """A metric of a task, `acc` or `exact_match, strict-match` where the task reads answers in
    several ways, with its standard error where the harness has one."""

    value: float
    stderr: float | None = None


ScoresByTask = dict[str, dict[str, BenchmarkScore]]  # by task and metric


@dataclass(frozen=True)
class Benchmarks:
    """The tasks, each model's scores by role, and student - role, paired question by question, of
    the metrics that are means. `benchmarks.json` in a job's folder is their JSON.

    `student` is the name of the train artifact that they are of, `max_length` the most tokens of
    prompt and answer; `left_out` holds the notes on tasks that a model could not run, `keys` the
    results' files by role and requested task.
    """

    student: str
    lm_eval_version: str | None
    engine: str
    dtype: str
    max_length: int | None
    tasks: dict[str, BenchmarkTask]
    models: dict[str, ScoresByTask]
    differences: dict[str, dict[str, dict[str, Difference]]]
    notes: list[str]
    left_out: list[str]
    keys: dict[str, dict[str, str]]


@dataclass(frozen=True)
class ReportContent:
    """All that a report says. The fields from `fingerprints` on belong to one run; the last two are
    what `retort benchmark` and `retort plan` found of its student.

    `champion` says where it lies and whether it could be read, `exports` holds the student in other
    formats by role, `teachers` several teachers by name, `registered` the student's name and
    version in the registry and the champion's version.
    """

    name: str
    task_type: str
    models: ModelsByRole
    comparison: Comparison
    gate: GateOutcome
    data: DataContent
    ran: RunContent
    all_differences: dict[str, Differences] = field(default_factory=dict)
    latency_bound_seconds: float | None = None
    perplexity_of: str | None = None
    champion: dict[str, str | bool] | None = None
    exports: dict[str, ExportedStudent] = field(default_factory=dict)
    slices: list[ColumnSlices] = field(default_factory=list)
    training: TrainingContent = field(default_factory=TrainingContent)
    teachers: dict[str, TeacherWorth] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    mlflow: dict[str, str | None] = field(default_factory=dict)
    prefect: dict[str, str | None] = field(default_factory=dict)
    registered: dict[str, str | None] = field(default_factory=dict)
    benchmarks: Benchmarks | None = None
    plan: JsonObject | None = None


def read_content(raw: Mapping[str, Any]) -> ReportContent:
    """Returns the content of a report.json. Raises `pydantic.ValidationError` where it is none."""
    return TypeAdapter(ReportContent).validate_python(_with_others(raw))


def read_evaluated(facts: Mapping[str, Any]) -> Evaluated:
    """Returns evaluate's facts. Raises `pydantic.ValidationError` where these are none."""
    return TypeAdapter(Evaluated).validate_python(_with_others(facts))


def read_benchmarks(raw: Mapping[str, Any]) -> Benchmarks:
    """Returns a benchmarks.json's content. Raises `pydantic.ValidationError` where it is none."""
    return TypeAdapter(Benchmarks).validate_python(raw)


def as_json(content: ReportContent) -> JsonObject:
    """Returns the content as report.json has it; what belongs to one run only where it is known."""
    models = {role: model.as_json() for role, model in content.models.items()}
    whole = {**asdict(content), "models": models}
    return {key: value for key, value in whole.items() if value or key not in OF_ONE_RUN}


def _with_others(raw: Mapping[str, Any]) -> JsonObject:
    """Returns JSON in which what is not known of a model stands under `others`."""
    if not isinstance(raw.get("models"), dict):
        return {**raw}
    known = {each.name for each in fields(MeasuredModel)}
    models = {
        role: {**model, "others": {k: v for k, v in model.items() if k not in known}}
        for role, model in raw["models"].items()
    }
    return {**raw, "models": models}
