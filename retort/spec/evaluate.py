"""The knobs of the comparison: how teacher, base and student are measured."""

from retort.spec.curate import ConsultedModel, Judge
from retort.spec.engine import EngineRuntime
from retort.spec.section import MAX_SEED, Section, knob


class Graders(Section):
    """Graders of OpenAI's Evals and fine-tuning API, each of which is a metric."""

    file: str = knob(
        ...,
        "path",
        "JSON as the API gives it: an eval with its testing_criteria, a list of graders, or one.",
    )
    main: str | None = knob(
        None, "name", "The grader that decides, in place of the task type's first metric."
    )
    judge: ConsultedModel | None = knob(
        None, "section", "The model that label_model and score_model ask, whichever they name."
    )
    python: bool = knob(
        False, "yes or no", "Run the code of python graders, with your rights; needs --trust."
    )


class Evaluate(Section):
    """Teacher, base and student on the same held-out examples, prompts and decoding."""

    engine: str = knob("auto", "name", "One engine for all models; auto: vllm if installed.")
    max_tokens: int | None = knob(
        None, "tokens", "Longest answer; as in generate if not given.", ge=1
    )
    max_model_len: int | None = knob(
        None, "tokens", "Longest prompt plus answer; as in generate if not given.", ge=2
    )
    dtype: str = knob("auto", "name", "Precision of the weights; auto: as stored.")
    limit: int | None = knob(None, "examples", "Use only the first test examples.", ge=1)
    metrics: tuple[str, ...] = knob(
        (), "names", "Further metrics beside the task type's own, yours as package.module:name."
    )
    graders: Graders | None = knob(
        None, "section", "Further metrics: graders of OpenAI's Evals.", added_later=True
    )
    judge: Judge | None = knob(None, "section", "A model that rates every answer of every model.")
    likelihood: bool = knob(
        True, "yes or no", "Measure perplexity, and the KL divergence to the teacher."
    )
    rounds: int = knob(
        2, "rounds", "How often each model is measured; the models take turns.", ge=1
    )
    latency_samples: int = knob(
        32, "requests", "Requests of a round answered one at a time to measure latency.", ge=2
    )
    latency_bound_seconds: float | None = knob(
        None,
        "seconds",
        "Requests a second are counted while 95% of whole answers take at most this time; if not "
        "given, twice the time that the teacher needs for 95% of its answers, one at a time.",
        gt=0,
    )
    speed_seconds: float | None = knob(
        None,
        "seconds",
        "How long each model's latency and load are measured, in all rounds together; a third of "
        "what generate took if not given, and at least 30.",
        added_later=True,
        gt=0,
    )
    num_bootstrap: int = knob(
        2000, "resamples", "Resamples behind each 95% confidence interval.", ge=100, le=1_000_000
    )
    seed: int = knob(0, "1", "Seed of the bootstrap.", ge=0, le=MAX_SEED)
    runtime: EngineRuntime = EngineRuntime()
