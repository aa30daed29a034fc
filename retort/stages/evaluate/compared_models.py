"""Which models are compared, where each is, and how it is asked: all in the same way.

Both sides of a child process read it. Note: with a champion or an exported student as its input the
stage measures that alone, because another evaluation measured the job's own models.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from retort.data import encoding
from retort.engines import EngineModule, Request, Settings, find_engine, resolve
from retort.errors import DataError, StageError
from retort.processes.libraries import lean_imports
from retort.records import Example, JsonObject, Response, State, read_lines
from retort.spec import JobSpec, export_of, training_of
from retort.stages.stage import Stage, held_out_split, read_examples
from retort.store import InputFolder, model_folder

# The models that no training of this job makes.
GIVEN = ("teacher", "base")
CHAMPION = "champion"
LENGTH_STEP = 64
# The states of a prompt that the model could not take or did not answer.
UNANSWERED: tuple[State, ...] = ("too_long", "failed")


def roles_of(stage: Stage) -> tuple[str, ...]:
    """Returns the roles of the models that the stage measures, in order."""
    if CHAMPION in stage.inputs:
        return (CHAMPION,)
    return exported(stage) or stage.spec.roles


def exported(stage: Stage) -> tuple[str, ...]:
    """Returns the exported student that the stage measures; nothing where it measures others."""
    return tuple(role for role in stage.spec.exports if export_of(role) in stage.inputs)


def rounds_of(stage: Stage) -> int:
    """Returns how often each model is measured. An exported student is alone, so that nobody takes
    turns with it: once."""
    return 1 if exported(stage) else stage.spec.evaluate.rounds


def title(spec: JobSpec, role: str) -> str:
    """Returns the name of a role's model in the report."""
    if role in GIVEN:
        is_cut = role == "base" and spec.cut is not None
        return f"{_address(spec, role)}, cut" if is_cut else _address(spec, role)
    if role in spec.exports:
        return f"{spec.name}, {spec.exports[role]}"
    return spec.name if role == "student" else f"{spec.name}, {role}"


@contextmanager
def model_of(stage: Stage, role: str) -> Iterator[str]:
    """Gives a role's model: a hub id, its name at the endpoint, or a folder on this machine."""
    home = home_of(stage, role)
    if home is None:
        yield _address(stage.spec, role)
        return
    folder, prefix = home
    with InputFolder(folder).local_copy(prefix) as local:
        yield str(local)


def home_of(stage: Stage, role: str) -> tuple[str, str] | None:
    """Returns the artifact and the folder in it that hold a model; None where no stage made it."""
    if role == "base" and "cut" in stage.inputs:
        return stage.input("cut").uri, "student"
    if role in GIVEN:
        return None
    if role in exported(stage):
        made, prefix = export_of(role), "model"
    else:
        made, prefix = (CHAMPION, "model") if role == CHAMPION else (training_of(role), "student")
    return stage.input(made).uri, prefix


def engine_of(stage: Stage, role: str) -> EngineModule:
    """Returns the engine that runs a model."""
    return find_engine(engine_name(stage, role))


def engine_name(stage: Stage, role: str) -> str:
    """Returns the name of a model's engine: the same for all, except that a teacher behind an
    endpoint can only be asked there, and an exported student by the runtime of its format."""
    if role in exported(stage):
        return str(stage.facts(export_of(role))["engine"])
    of_teacher = resolve(stage.spec.generate.engine, 0)
    if role == "teacher" and find_engine(of_teacher).REMOTE:
        return of_teacher
    return resolve(stage.spec.evaluate.engine, 0)


def imports_of(stage: Stage, role: str) -> AbstractContextManager[None]:
    """Returns within what a process opens a model: where its engine needs no torch, none is
    imported, which would count for its memory."""
    return lean_imports(*() if getattr(engine_of(stage, role), "TORCH", True) else ("torch",))


def settings_of(spec: JobSpec, model: str) -> Settings:
    """Returns the engine settings of the comparison: greedy, and the same for all models."""
    knobs = spec.evaluate
    return Settings(
        model=model,
        temperature=0.0,
        top_p=1.0,
        max_tokens=knobs.max_tokens or spec.generate.max_tokens,
        max_model_len=knobs.max_model_len or spec.generate.max_model_len,
        top_k=0,
        dtype=knobs.dtype,
        seed=knobs.seed,
        # Not as a provider's batch, which takes up to a day and cannot be timed.
        runtime=knobs.runtime.model_dump(mode="json") | {"batch": False},
        endpoint=spec.generate.endpoint,
        api_key_env=spec.generate.api_key_env,
    )


def fitting_length(stage: Stage, model: str) -> int | None:
    """Returns the longest prompt and answer together that an exported student is asked, in tokens:
    its runtime keeps room for as many, whatever the model could take; else the spec's."""
    knobs = settings_of(stage.spec, model)
    if knobs.max_model_len is not None:
        return knobs.max_model_len
    tokenizer, examples = encoding.load_tokenizer(model), asked_examples(stage)
    chats, tools = [e.messages for e in examples], [e.tools for e in examples]
    rendered = encoding.render_each(tokenizer, chats, tools)
    longest = max((len(ids) for ids in rendered if not isinstance(ids, str)), default=0)
    wanted = -(-(longest + knobs.max_tokens) // LENGTH_STEP) * LENGTH_STEP
    most = model_folder.text_config(Path(model)).get("max_position_embeddings")
    return min(wanted, int(most)) if most else wanted


def check_template(stage: Stage, student: Path, role: str = "student") -> None:
    """Raises `StageError` when a student's chat template is not the one of its training."""
    training = "train" if role in exported(stage) else training_of(role)
    if model_folder.template_sha256(student) != stage.facts(training)["template_sha256"]:
        raise StageError(
            f"the {role}'s chat template is not the one that it was trained with; run with --force "
            "train"
        )


def asked_examples(stage: Stage) -> list[Example]:
    """Returns the held-out examples that the models are asked."""
    examples = read_examples(stage.input("prepare"), held_out_split(stage.spec))
    return examples[: stage.spec.evaluate.limit]


def requests_of(examples: list[Example]) -> list[Request]:
    """Returns the requests that every model gets."""
    return [Request(e.id, e.messages, e.tools) for e in examples]


def answered_examples(stage: Stage, role: str) -> list[Example]:
    """Returns the examples that a model answered. Raises `StageError` where it has none."""
    answers = read_answers(stage, role)
    examples = [e for e in asked_examples(stage) if is_answered(answers[e.id])]
    if not examples:
        causes = sorted({str(response.cause) for response in answers.values()})
        raise StageError(
            f"the {role} answers none of the {len(answers):,} held-out prompts "
            f"({'; '.join(causes[:3])}); raise evaluate.max_model_len, or give shorter prompts"
        )
    return examples


def generated(stage: Stage) -> JsonObject:
    """Returns the manifest of the answers that the student learned from; empty where unknown."""
    if "train" not in stage.inputs:
        return {}
    recipe = (stage.input("train").manifest() or {}).get("ingredients", {})
    name = recipe.get("inputs", {}).get("generate", "none")
    return stage.store.artifact("generate", name).manifest() or {}


def read_answers(stage: Stage, role: str) -> dict[str, Response]:
    """Returns a model's stored answers by example's id, in the examples' order.

    Raises `DataError` where they are not those of the examples.
    """
    lines = read_lines(Response, stage.out.read(f"answers-{role}.jsonl"))
    responses = {response.id: response for response in lines}
    examples = asked_examples(stage)
    if set(responses) != {e.id for e in examples}:
        raise DataError(
            f"evaluate: the stored answers of the {role} are not those of the held-out examples; "
            "run with --force evaluate"
        )
    return {e.id: responses[e.id] for e in examples}


def is_answered(response: Response) -> bool:
    """Whether a model answered, in whatever way; false where it could not take the prompt."""
    return response.state not in UNANSWERED


def _address(spec: JobSpec, role: str) -> str:
    return spec.generate.teacher if role == "teacher" else spec.base
