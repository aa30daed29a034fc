"""curate: decides which responses the student learns. Kept + rejected = responses, always.

The filters run one after the other, each over all remaining responses: a judge or a second teacher
is only asked about responses that the filters before it kept, and peers are those remaining.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

from retort.data import balance, reasoning, task_types
from retort.data.filters import candidate
from retort.data.filters.candidate import Candidate, item_of
from retort.data.task_types import TaskType
from retort.errors import DataError
from retort.records import Decision, JsonObject, Response, read_lines, write_lines
from retort.spec import JobSpec
from retort.stages.curate import data_card, judging
from retort.stages.stage import Stage, read_examples

# The filters that pick an answer among several teachers', added where the spec does not name them.
OF_ROUTE: dict[str, dict[str, JsonObject]] = {
    "best_judged": {"judged": {"min_score": 1.0}, "best_of_n": {}},
    "agreement": {"majority": {"at_least": 1}, "first_of_n": {}},
}
Chosen = list[tuple[str, Callable[[Candidate], str | None]]]


def curate(stage: Stage) -> JsonObject:
    """Writes one decision for each response; returns counts, reasons and the balance of groups.

    Raises `DataError` when fewer train responses are kept than `curate.min_kept`.
    """
    task_type = task_types.load(stage.spec.prepare.task_type)
    chosen = _chosen(stage.spec, task_type)
    items = list(_items(stage, task_type))
    reasons, scores, num_unreached = _sift(stage, items, chosen)
    decisions = [_decision(item, stage.spec, reasons, scores) for item in items]
    groups = _groups(stage.spec, items)
    spread = _weigh(decisions, groups, stage.spec.curate.balance)
    stage.out.write("decisions.jsonl", write_lines(decisions))
    counted = Counter(f"{d.filter}: {d.reason}" for d in decisions if not d.kept)
    num_kept_train = sum(spread["balance_after"].values())
    _check_enough(stage.spec, num_kept_train, counted)
    data_card.write(stage, decisions)
    stage.report.note(_outcome(len(decisions), counted))
    return {
        "num_responses": len(decisions),
        "num_kept": len(decisions) - counted.total(),
        "num_kept_train": num_kept_train,
        "num_rejected": counted.total(),
        "reasons": dict(counted.most_common()),
        "num_unreached": num_unreached,
        "filters": [name for name, _ in chosen],
        **spread,
        **_of_teachers(items, decisions),
    }


def _of_teachers(items: list[Candidate], decisions: list[Decision]) -> dict[str, dict[str, int]]:
    """Returns how many responses of each of several teachers are kept."""
    names = [item.response.teacher for item in items]
    pairs = zip(names, decisions, strict=True)
    kept = Counter({name: 0 for name in names if name})
    kept.update(name for name, decision in pairs if name and decision.kept)
    return {"num_kept_of": dict(kept)} if kept else {}


def _outcome(num_responses: int, rejected: Counter[str]) -> str:
    """Returns in one line what the stage came to."""
    reasons = ", ".join(f"{reason} ({count:,})" for reason, count in rejected.most_common(5))
    why = f"; rejected: {reasons}" if reasons else ""
    return f"kept {num_responses - rejected.total():,} of {num_responses:,} responses{why}"


def _chosen(spec: JobSpec, task_type: TaskType) -> Chosen:
    """Returns the filters in order with their options.

    If answers have a rationale, a filter for texts without an answer after it is added, behind
    `finished`: a truncated text is rejected as such. Raises `SpecError` for an unknown option.
    """
    knobs = spec.curate
    named = [(chosen.name, chosen.options) for chosen in knobs.filters]
    filters: Chosen = []
    for name, own in named or [(name, {}) for name in task_types.filters_of(task_type)]:
        # A summary may have as many words as the teacher was allowed.
        default = {"max_words": spec.prepare.max_summary_words} if name == "summary_length" else {}
        options = {**default, **own}
        filters.append((name, partial(candidate.check(name, options), **options)))
    if spec.generate.reasoning != "none" or knobs.rationale != "keep":
        at = 1 + max((i for i, (name, _) in enumerate(filters) if name == "finished"), default=-1)
        filters.insert(at, ("rationale", partial(_no_answer, spec)))
    of_route = OF_ROUTE.get(spec.generate.route.by, {}) if spec.generate.route else {}
    for name, options in of_route.items():
        if name not in (known for known, _ in filters):
            filters.append((name, partial(candidate.check(name, options), **options)))
    return filters


def _no_answer(spec: JobSpec, item: Candidate) -> str | None:
    """Rejects a text that ends before its answer, or that marks none although it was asked to."""
    whole = item.response.text
    if not whole.strip():
        return None
    unmarked = item.rationale is None and item.text == whole and spec.generate.reasoning != "none"
    return "no answer found after the reasoning" if unmarked or not item.text.strip() else None


def _items(stage: Stage, task_type: TaskType) -> Iterator[Candidate]:
    """Yields every response with its example, in order; answers to one question share their peers.

    Raises `DataError` when the ids of responses and examples do not match.
    """
    examples = {e.id: e for e in read_examples(stage.input("prepare"), "train", "validation")}
    peers: dict[tuple[str, int], list[Candidate]] = {}
    answered: set[str] = set()
    for response in _responses(stage):
        answered.add(response.example_id)
        if response.example_id not in examples:
            break
        group = peers.setdefault((response.example_id, response.turn), [])
        item = item_of(stage.spec, task_type, examples[response.example_id], response)
        item = replace(item, peers=group)
        group.append(item)
        yield item
    if answered != set(examples):
        raise DataError("generate: responses and examples do not match by id; use --force generate")


def _responses(stage: Stage) -> Iterator[Response]:
    """Yields all responses without their token ids, which take most of the memory."""
    generated = stage.input("generate")
    for name in generated.files():
        if name.startswith("responses-"):
            for response in read_lines(Response, generated.read(name)):
                yield replace(response, token_ids=[])


def _sift(
    stage: Stage, items: list[Candidate], chosen: Chosen
) -> tuple[dict[str, tuple[str, str]], dict[str, float], int]:
    """Returns the rejections (filter, reason) and the judge's scores, by the responses' ids; and
    for how many responses a further model was not reached."""
    reasons: dict[str, tuple[str, str]] = {}
    scores: dict[str, float] = {}
    remaining, num_unreached = items, 0
    for number, (name, rejects) in enumerate(chosen):
        if name == "judged":
            remaining, number_here = judging.judge(stage, remaining)
            num_unreached += number_here
            scores |= {i.response.id: i.score for i in remaining if i.score is not None}
        elif name == "teachers_agree":
            remaining, number_here = judging.second_teacher(stage, remaining)
            num_unreached += number_here
        verdicts = [(item, rejects(item)) for item in remaining]
        for item, reason in verdicts:
            if reason is not None:
                reasons[item.response.id] = (name, reason)
                item.peers.remove(item)
        remaining = [item for item, reason in verdicts if reason is None]
        note = f"{name}: {len(remaining):,} of {len(items):,} responses left"
        stage.report.progress(number + 1, len(chosen), "filters", note)
    return reasons, scores, num_unreached


def _decision(
    item: Candidate, spec: JobSpec, reasons: dict[str, tuple[str, str]], scores: dict[str, float]
) -> Decision:
    """Returns the decision on one response, with the text to learn if it is another."""
    name = item.response.id
    score = scores.get(name)
    if name in reasons:
        return Decision(name, False, *reasons[name], score=score)
    if spec.curate.rationale == "keep":
        return Decision(name, True, score=score)
    text, kept = reasoning.target_text(item.response.text, spec.curate.rationale)
    target_text = None if text == item.response.text else text
    return Decision(name, True, target_text=target_text, rationale=kept, score=score)


def _groups(spec: JobSpec, items: list[Candidate]) -> dict[int, str]:
    """Returns the group (`prepare.balance.by`) of each train response by its index."""
    knobs = spec.prepare.balance
    trained = {at: item.example for at, item in enumerate(items) if item.example.split == "train"}
    if knobs.by != "cluster":
        return {at: balance.group_of(example, knobs.by) for at, example in trained.items()}
    texts = {example.id: balance.text_of(example) for example in trained.values()}
    names = balance.clusters(list(texts.values()), knobs.num_clusters)[0]
    of_example = dict(zip(texts, names, strict=True))
    return {at: of_example[example.id] for at, example in trained.items()}


def _weigh(
    decisions: list[Decision],
    groups: dict[int, str],
    mode: Literal["none", "oversample", "weights"],
) -> dict[str, dict[str, int]]:
    """Sets the weights of kept train responses; returns the number of train responses in each
    group before and after curation."""
    kept = [at for at in groups if decisions[at].kept]
    kept_groups = [groups[at] for at in kept]
    for at, weight in zip(kept, balance.weights(kept_groups, mode), strict=True):
        decisions[at] = replace(decisions[at], weight=weight)
    return {
        "balance_before": balance.largest(balance.spread(groups.values())),
        "balance_after": balance.largest(balance.spread(kept_groups)),
    }


def _check_enough(spec: JobSpec, num_kept_train: int, reasons: Counter[str]) -> None:
    """Raises `DataError` when too few train responses are kept."""
    if num_kept_train < spec.curate.min_kept:
        most = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(5))
        raise DataError(
            f"curate kept {num_kept_train:,} train responses, fewer than curate.min_kept="
            f"{spec.curate.min_kept:,}; rejected: {most or 'none'}. `retort rows SPEC --rejected` "
            "shows them; after a change of filters the stored answers are used again"
        )
