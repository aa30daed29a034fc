"""What the student answers, greedily, with its distributions: it is asked as a teacher is.

To the code that asks, the student *is* the teacher of a job whose examples are the rows of a pool.
So its answers go to a ledger of its own as they finish, and a killed run continues them; a second
pool costs only what is new. The teacher is never asked.
"""

# T tokens, K largest probabilities
from collections.abc import Iterator

import numpy as np

from retort.engines import find_engine, resolve
from retort.errors import SpecError
from retort.events import Reporter
from retort.records import Example, Response, read_lines, sha256_of, write_lines
from retort.spec import JobSpec, Recipe
from retort.spec.engine import GenerateRuntime
from retort.spec.fingerprint import VERSIONS, knobs
from retort.spec.generate import Generate
from retort.spec.spending import TeacherSpending
from retort.spec.train import Train
from retort.stages.generate import generate
from retort.stages.stage import Stage
from retort.store import Artifact, Folder, InputFolder, Store, signals
from retort.store.signals import Signal

# Of so many largest probabilities the entropy is taken; all others count as one.
TOP_K = 8


def answers(
    spec: JobSpec, store: Store, student: Artifact, examples: list[Example], report: Reporter
) -> Iterator[tuple[Response, Signal | None]]:
    """Yields the student's answer to each example, and its distributions where its engine gives
    any. Raises what `generate` raises."""
    rows = _artifact(store, examples)
    with InputFolder(student.uri).local_copy("student") as folder:
        asked = _asking(spec, str(folder))
        recipe = Recipe(
            "generate",
            {
                "stage": "generate",
                "version": VERSIONS["generate"],
                "knobs": knobs(asked, "generate"),
                "sources": {"generate.engine": asked.generate.engine},
                "inputs": {"prepare": rows.name, "train": student.name},
            },
            asked,
        )
        out = store.artifact("generate", recipe.name)
        if not out.finished():
            stage = Stage(
                *("generate", asked, store, {"prepare": rows}, out, report),
                store.log(f"{spec.name}-choose"),
            )
            facts = generate(stage)
            out.commit({"ingredients": recipe.ingredients, "facts": facts})
    yield from _read(InputFolder(out.uri))


def entropy(signal: Signal | None) -> float | None:
    """Returns the mean over the answer's tokens of the entropy of each, in nats; None where the
    distributions are not known. What is not among the K largest counts as one more token."""
    if signal is None or not len(signal.tail_T):
        return None
    logprobs_TK = np.concatenate([signal.logprobs_TK, signal.tail_T[:, None]], axis=1)
    probabilities_TK = np.exp(logprobs_TK.astype(np.float64))
    return float(-(probabilities_TK * logprobs_TK).sum(axis=1).mean())


def _artifact(store: Store, examples: list[Example]) -> Artifact:
    """Returns the examples as what `prepare` would make of them."""
    lines = write_lines(examples)
    folder = store.artifact("prepare", sha256_of(lines.decode())[:16])
    if found := folder.finished():
        return found
    folder.write("train-00000.jsonl", lines)
    return folder.commit({"ingredients": {"inputs": {}}, "facts": {"num_rows": len(examples)}})


def _asking(spec: JobSpec, student: str) -> JobSpec:
    """Returns the job in which the student answers greedily, as a comparison asks it."""
    own = spec.evaluate
    engine = resolve(own.engine, 0)
    module = find_engine(engine)
    if module.REMOTE:
        raise SpecError(
            f"evaluate.engine: {engine} asks an endpoint, but the student is opened here; choose "
            "with --set evaluate.engine=auto"
        )
    runtime = own.runtime.model_dump() | {"batch": False}
    asking = Generate(
        teacher=student,
        engine=engine,
        turns="last",
        top_k=TOP_K if module.GIVES_SIGNAL else 0,
        max_tokens=own.max_tokens or spec.generate.max_tokens,
        max_model_len=own.max_model_len or spec.generate.max_model_len,
        dtype=own.dtype,
        min_success_ratio=0.0,
        spending=TeacherSpending(pilot_rows=0),
        runtime=GenerateRuntime(**runtime, parity_samples=0),
    )
    return JobSpec(
        name=spec.name,
        prepare=spec.prepare,
        generate=asking,
        train=Train(student=student),
        cluster=spec.cluster,
    )


def _read(made: Folder) -> Iterator[tuple[Response, Signal | None]]:
    for name in made.files():
        if name.startswith("responses-"):
            shard = name.removeprefix("responses-").removesuffix(".jsonl")
            own = f"signals-{shard}.safetensors"
            known = signals.unpack(made.read(own)) if made.has(own) else {}
            for response in read_lines(Response, made.read(name)):
                yield response, known.get(response.id)
