"""The tables of the comparison, a column a model, and what exactly their numbers are.

The first table is the one that people who distil show: parameters, memory usage, inference time,
accuracy, throughput. Cells are finished text, so that every page and terminal says the same.
"""

from collections.abc import Callable, Iterable

from retort.metrics.comparison import formatting as show
from retort.metrics.comparison.shapes import (
    Differences,
    ExportedStudent,
    Latency,
    MeasuredModel,
    ModelsByRole,
    ReportContent,
)

TableRow = list[str]
Measures = dict[str, Callable[[MeasuredModel], str]]  # by what a row is called
EXPORT_CAPTION = (
    "Each exported student answered the held-out examples by its own runtime, from the same "
    "prompts, greedily; differences are paired example by example, with 95% intervals; KL: mean "
    "over the tokens of up to 64 of its answers, student to export, the student in 32-bit floats. "
    "Times of runtimes are measured one after the other, not in turns."
)
TEACHERS_CAPTION = (
    "Learned: the train and validation answers that curation kept, and their share of all kept; "
    "cost: of the answers that this job asked for; student's loss: on the teacher's validation "
    "rows, per token; the last column is measured where train.controls names without_NAME."
)
ROUNDS_CAPTION = (
    "Nats: KL(student || teacher) a token on the student's own answers to training prompts, before "
    "it learned from them; cut off, repeats: shares of these answers; loss: on its answers to "
    "validation prompts, before and after. A round that is not kept left the student as it was."
)
ANSWERS_OF = {"reference": "the rows' own answers", "teacher": "the teacher's answers"}


def table(models: ModelsByRole, metric: str) -> list[TableRow]:
    """Returns the first table: a heading row, then a row a measure."""
    measures: Measures = {
        "parameters": lambda m: show.count(m.parameters),
        "memory usage (weights)": lambda m: show.count_bytes(m.weights_bytes),
        "inference time": lambda m: _seconds(m.latency_seconds, "p50"),
        metric: lambda m: show.estimate(m.metrics.get(metric), metric),
        "throughput (tokens/s)": lambda m: show.whole(m.tokens_per_second),
    }
    return [["", *models], *_rows(models, measures)]


def details(models: ModelsByRole, metric: str, differences: Differences) -> list[TableRow]:
    """Returns the second table, in the first one's columns: the scores' intervals, and the rest
    that was measured. A measure that is known of no model is left out."""
    measures: Measures = {
        "inference time, 95% interval": lambda m: _median_interval(m.latency_seconds),
        "inference time, 95th percentile": lambda m: _seconds(m.latency_seconds, "p95"),
        "first token": lambda m: _seconds(m.first_token_seconds, "p50"),
        "first token, 95th percentile": lambda m: _seconds(m.first_token_seconds, "p95"),
        "requests a second": lambda m: show.number(m.requests_per_second),
        "requests a second within the bound": _rate_within_bound,
        "peak memory of the process": lambda m: show.count_bytes(m.peak_memory_bytes),
        "peak memory of the GPU": lambda m: show.count_bytes(m.peak_gpu_memory_bytes),
        "load time": lambda m: show.duration(m.load_seconds),
        "cost of 1,000 requests": lambda m: show.number(m.cost_per_1000_requests),
    }
    rows = [
        *certainty(models, metric, differences),
        *_rows(models, measures),
        *_further_metrics(models, metric),
    ]
    return [["", *models], *(row for row in rows if set(row[1:]) - {"unknown", ""})]


def certainty(models: ModelsByRole, metric: str, differences: Differences) -> list[TableRow]:
    """Returns the main metric's interval, and by how much the student differs from each model."""
    others = {role: differences.get(role) for role in models if role != "student"}
    values = {role: show.difference(difference, metric) for role, difference in others.items()}
    ends = {role: show.gaps(difference, metric) for role, difference in others.items()}
    intervals = [show.interval(model.metrics.get(metric), metric) for model in models.values()]
    return [
        [f"{metric}, 95% interval", *intervals],
        ["student minus it", *(values.get(role, "") for role in models)],
        ["student minus it, 95% interval", *(ends.get(role, "") for role in models)],
    ]


def exports(content: ReportContent, roles: Iterable[str] | None = None) -> list[TableRow]:
    """Returns the table of the exported students, a column each beside the student they were made
    from; [] without any."""
    metric, student = content.comparison.metric, content.models["student"]
    shown = [content.exports[role] for role in (content.exports if roles is None else roles)]
    if not shown:
        return []
    columns: ModelsByRole = {"student": student, **{each.format: each.model for each in shown}}
    own = _rows(
        columns,
        {
            "size": lambda m: show.count_bytes(m.weights_bytes),
            metric: lambda m: show.estimate(m.metrics.get(metric), metric),
            "inference time": lambda m: _seconds(m.latency_seconds, "p50"),
            "first token": lambda m: _seconds(m.first_token_seconds, "p50"),
            "throughput (tokens/s)": lambda m: show.whole(m.tokens_per_second),
            "peak memory of the process": lambda m: show.count_bytes(m.peak_memory_bytes),
            "load time": lambda m: show.duration(m.load_seconds),
        },
    )
    compared = [
        ["minus the student", "", *(_against(each, "student", metric) for each in shown)],
        ["minus the teacher", "", *(_against(each, "teacher", metric) for each in shown)],
        ["KL to the student, nats", "", *(_nats(each) for each in shown)],
    ]
    runtimes = ["runtime", student.engine, *(each.model.engine for each in shown)]
    verdicts = ["may go out", "", *("yes" if each.check.passed else "refused" for each in shown)]
    return [["", *columns], *own[:2], *compared, *own[2:], runtimes, verdicts]


def teachers(content: ReportContent) -> list[TableRow]:
    """Returns the table of what several teachers were worth, a row each; [] where there is one."""
    if not content.teachers:
        return []
    metric = content.comparison.metric
    heading = ["model", "answers", "learned", "of all", "answer tokens", "cost", "student's loss"]
    rows = [
        [
            name,
            f"{each.model}, {each.engine}",
            show.whole(each.num_responses),
            show.whole(each.num_kept),
            show.percent(each.share),
            show.whole(each.num_tokens),
            show.number(each.cost),
            show.number(each.student_loss, 4),
            show.difference(each.gain, metric, with_interval=True) if each.gain else "not measured",
        ]
        for name, each in content.teachers.items()
    ]
    return [["", *heading, "student minus itself without its rows"], *rows]


def rounds(content: ReportContent) -> list[TableRow]:
    """Returns the table of the on-policy rounds, a row each; [] where there are none."""
    found = content.training.rounds
    if not found:
        return []
    heading = ["round", "answers", "tokens each", "cut off", "repeats", "nats", "loss", "kept"]
    rows = [
        [
            show.whole(int(each["round"])),
            show.whole(int(each["num"])),
            show.number(each["length"], 3),
            show.percent(each["truncated"]),
            show.percent(each["repeated"]),
            show.number(each["divergence"], 3),
            f"{show.number(each.get('loss_before'), 3)} to "
            f"{show.number(each.get('loss_after'), 3)}",
            "yes" if each["kept"] else "no",
        ]
        for each in found
    ]
    return [heading, *rows]


def _against(export: ExportedStudent, role: str, metric: str) -> str:
    found = export.against.get(role)
    return show.difference(found, metric, with_interval=True)


def _nats(export: ExportedStudent) -> str:
    found = export.model.metrics.get("kl_to_student")
    return "unknown" if found is None else f"{max(found.value, 0):.1e}"


def _further_metrics(models: ModelsByRole, main: str) -> list[TableRow]:
    """Returns the metrics beside the main one, each with its interval."""
    names = dict.fromkeys(name for model in models.values() for name in model.metrics)

    def cell(role: str, metric: str) -> str:
        if (role, metric) == ("teacher", "kl_to_teacher"):
            return ""
        return show.estimate(models[role].metrics.get(metric), metric, with_interval=True)

    return [[name, *(cell(role, name) for role in models)] for name in names if name != main]


def _rows(models: ModelsByRole, measures: Measures) -> list[TableRow]:
    return [[name, *map(measure, models.values())] for name, measure in measures.items()]


def _seconds(latency: Latency | None, quantile: str) -> str:
    return show.duration(getattr(latency, quantile, None))


def _median_interval(latency: Latency | None) -> str:
    if latency is None or latency.low is None:
        return "unknown"
    return f"{show.duration(latency.low)} to {show.duration(latency.high)}"


def _rate_within_bound(model: MeasuredModel) -> str:
    """Returns the rate; none where it was measured and never kept the bound."""
    limit = model.within_bound
    if limit is None:
        return "unknown" if model.requests_per_second is None else "none"
    return f"{show.number(limit.requests_per_second)} ({limit.concurrency} at once)"


def caption(content: ReportContent) -> str:
    """Returns what exactly the tables' numbers are."""
    data, student, bound = content.data, content.models["student"], content.latency_bound_seconds
    within = f"; the bound: {show.duration(bound)} for 95% of whole answers" if bound else ""
    answers = ANSWERS_OF.get(content.perplexity_of or "")
    perplexity = f"; perplexity: of {answers}" if answers else ""
    points = "points" if show.is_share(content.comparison.metric) else "differences"
    return (
        f"{data.num_examples:,} held-out examples ({data.split} file), greedy decoding, "
        f"engine {student.engine} {student.engine_version}, each model in a process of its "
        "own; scores with 95% bootstrap intervals; student minus it: "
        f"{points}, paired example by example; inference time: median of whole answers, one at a "
        "time, each at its quickest; throughput and requests a second: all examples at once"
        f"{within}; weights: their bytes; memory of the process: its peak, engine included"
        f"{perplexity}."
    )
