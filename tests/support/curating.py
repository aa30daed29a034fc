"""Examples and responses written by hand and curated, for the tests of `curate`."""

from retort.events import SILENT
from retort.records import Example, Response, write_lines
from retort.spec import build
from retort.stages.curate import curate
from retort.stages.stage import Stage, read_decisions
from retort.store import open_store


def asked(name, split="train", expected="2", question="1 + 1 = ?", **more) -> Example:
    return Example(name, split, [{"role": "user", "content": question}], expected, **more)


def said(example, text, state="accepted", sample=0, turn=0, **more) -> Response:
    name = f"{example}#{sample}.{turn}" if sample or turn else example
    tokens = list(text.encode())
    return Response(
        name, text, tokens, "stop", 5, len(tokens), "", state,
        example_id=example, sample=sample, turn=turn, **more,
    )  # fmt: skip


def curated(
    home,
    examples,
    responses,
    filters=("finished", "verified"),
    generate=(),
    *,
    report=SILENT,
    **knobs,
):
    """Curates examples and responses as artifacts of a store; returns facts and decisions."""
    sections = {
        "prepare": {"train": "x.jsonl", "test": "x.jsonl", **knobs.pop("prepare", {})},
        "generate": {"teacher": "t", "top_k": 0, **dict(generate)},
        "curate": {"filters": list(filters), **knobs},
    }
    spec = build({"name": "j", "train": {"student": "s"}, **sections})
    store = open_store(home / "store")
    prepared, generated, out = (store.artifact(s, "a") for s in ("prepare", "generate", "out"))
    for folder in (prepared, generated, out):
        folder.clear()
    for split in ("train", "validation"):
        rows = [e for e in examples if e.split == split]
        prepared.write(f"{split}-00000.jsonl", write_lines(rows))
    for at in range(0, len(responses), 3):
        generated.write(f"responses-{at:05}.jsonl", write_lines(responses[at : at + 3]))
    inputs = {s: store.artifact(s, "a").commit({"facts": {}}) for s in ("prepare", "generate")}
    stage = Stage("curate", spec, store, inputs, out, report, home / "log")
    facts = curate(stage)
    return facts, read_decisions(out)


def why(decisions) -> dict[str, str | None]:
    return {name: d.reason and f"{d.filter}: {d.reason}" for name, d in decisions.items()}
