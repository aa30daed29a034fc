"""generate: the teacher answers every train and validation example, its signal captured with it.

Responses are written shard by shard; a killed run continues at the shards that are missing. The
stored response is the truth: nothing that stands is ever asked again.
"""

import time
from collections.abc import Iterator
from typing import Any

from retort import child, models, signals
from retort.context import Stage, from_arguments, read_examples
from retort.engines import Answer, Request, Settings, find_engine, resolve
from retort.errors import StageError
from retort.events import Reporter
from retort.records import Example, write_lines
from retort.spec import JobSpec

Shard = tuple[str, list[Example]]


def generate(stage: Stage) -> dict[str, Any]:
    """Writes responses and signals in a child process; returns counts and the engine's facts."""
    facts: dict[str, Any] = child.run(
        "retort.generate:capture",
        {"arguments": stage.arguments()},
        stage.report,
        stage.log,
        stage.spec.generate.runtime.model_dump(),
    )
    return facts


def capture(arguments: dict[str, Any], report: Reporter) -> dict[str, Any]:
    """The child's side: opens the teacher, answers what is missing, shard by shard."""
    stage = from_arguments(arguments, report)
    spec = stage.spec
    examples = read_examples(stage.input("prepare"), "train", "validation")
    shards = shards_of(examples, spec.generate.shard_size)
    standing = set(stage.out.files())
    missing = [shard for shard in shards if f"{shard[0]}.jsonl" not in standing]
    done = len(examples) - sum(len(rows) for _, rows in missing)
    if done:
        report.note(f"continuing: {done} of {len(examples)} responses already stand")
    if missing:
        _fill(stage, missing, done, len(examples))
    facts = stage.out.read_json("engine.json")
    return {**facts, "num_examples": len(examples), "num_shards": len(shards)}


def shards_of(examples: list[Example], size: int) -> list[Shard]:
    """Returns names and rows of the shards: a fixed view on the examples, in their order."""
    return [
        (f"responses-{start // size:05d}", examples[start : start + size])
        for start in range(0, len(examples), size)
    ]


def settings_of(spec: JobSpec) -> Settings:
    """Returns the teacher's engine settings."""
    knobs = spec.generate
    return Settings(
        model=knobs.teacher,
        temperature=knobs.temperature,
        top_p=knobs.top_p,
        max_tokens=knobs.max_tokens,
        max_model_len=knobs.max_model_len,
        top_k=knobs.top_k,
        dtype=knobs.dtype,
        seed=knobs.seed,
        runtime=knobs.runtime.model_dump(mode="json"),
    )


def _fill(stage: Stage, missing: list[Shard], done: int, total: int) -> None:
    """Answers the examples of the missing shards; writes each shard when its last row is in."""
    report, knobs = stage.report, stage.spec.generate
    report.progress(done, total, "responses", "loading the teacher")
    engine = find_engine(resolve(knobs.engine, knobs.top_k)).open_engine(settings_of(stage.spec))
    stage.out.write_json("engine.json", {**engine.facts, **_identity(knobs.teacher)})
    shard_of = {row.id: name for name, rows in missing for row in rows}
    waiting = {name: len(rows) for name, rows in missing}
    order = {row.id: index for _, rows in missing for index, row in enumerate(rows)}
    arrived: dict[str, list[Answer]] = {name: [] for name, _ in missing}
    tokens, started, said = 0, time.monotonic(), 0.0
    for response, signal in engine.generate(_requests(missing)):
        name = shard_of.pop(response.id, None)
        if name is None:
            raise StageError(f"the engine answered {response.id} twice or unasked")
        arrived[name].append((response, signal))
        tokens, done, waiting[name] = tokens + len(response.token_ids), done + 1, waiting[name] - 1
        if waiting[name] == 0:
            ready = sorted(arrived.pop(name), key=lambda answer: order[answer[0].id])
            _write_shard(stage, name, ready)
        if (now := time.monotonic()) - said > 0.5 or done == total:
            report.progress(done, total, "responses", f"{tokens / (now - started):,.0f} tokens/s")
            said = now
    if shard_of:
        raise StageError(f"the engine left {len(shard_of)} requests unanswered")
    seconds = time.monotonic() - started
    report.metrics({"tokens_per_second": tokens / seconds, "tokens": float(tokens)}, step=0)


def _identity(teacher: str) -> dict[str, str]:
    """What the student's side is compared with: the token map and the template of capture."""
    folder = models.locate(teacher, "generate.teacher")
    return {
        "token_map_sha256": models.token_map(folder)[0],
        "template_sha256": models.template_sha256(folder),
    }


def _write_shard(stage: Stage, name: str, answers: list[Answer]) -> None:
    """The signal first: a shard counts as standing once its responses are there."""
    pairs = [(r.id, s) for r, s in answers if s is not None and len(s.target_ids_T)]
    if pairs:
        stage.out.write(f"{name.replace('responses', 'signals')}.npz", signals.pack(pairs))
    stage.out.write(f"{name}.jsonl", write_lines([response for response, _ in answers]))


def _requests(missing: list[Shard]) -> Iterator[Request]:
    for _, rows in missing:
        for row in rows:
            yield Request(row.id, row.messages)
