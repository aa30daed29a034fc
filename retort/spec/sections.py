"""Every knob of the teacher and the student: its unit, its default, what it does.

`runtime` sub-sections hold what changes speed or place but not results; they stay out of the
fingerprint, so that moving a job to a larger machine keeps what was already paid for.
"""

from typing import Literal

from pydantic import ConfigDict, model_validator

from retort.records import State
from retort.spec.engine import EngineRuntime
from retort.spec.section import Section, knob


class GenerateRuntime(EngineRuntime):
    """As every engine's, and what keeps the capture going."""

    stall_seconds: float = knob(
        900.0, "seconds", "An engine here that does nothing for so long is started anew.", gt=0
    )
    max_restarts: int = knob(
        3, "restarts", "Most new starts of a dead engine, each with half the sequences.", ge=0
    )
    parity_samples: int = knob(
        4, "responses", "Responses whose signal a plain forward pass must confirm; 0: none.", ge=0
    )
    replicas: int = knob(
        1,
        "processes",
        "Workers of the pool that answer the job's examples together, this job's own among them.",
        ge=1,
        le=1024,
    )
    retry: tuple[State, ...] = knob(
        (), "states", "Rows in these states are asked again although they stand in the ledger."
    )


class Spending(Section):
    """What the teacher may cost. Knobs of caution: they never change an answer."""

    pilot_rows: int = knob(
        16, "rows", "Asked first; more than one unusable answer stops the job. 0: no pilot.", ge=0
    )
    price_per_million_input_tokens: float = knob(0.0, "money", "Price of the prompts.", ge=0)
    price_per_million_output_tokens: float = knob(0.0, "money", "Price of the answers.", ge=0)
    price_per_hour: float = knob(0.0, "money", "Price of the machine the teacher runs on.", ge=0)
    max_tokens_total: int | None = knob(
        None, "tokens", "The run stops before prompts and answers exceed this.", ge=1
    )
    max_cost: float | None = knob(None, "money", "The run stops before it costs more.", gt=0)


class Generate(Section):
    """The teacher answers every train and validation example."""

    teacher: str = knob(..., "path, hub id or name at the endpoint", "The model to imitate.")
    engine: str = knob("auto", "name", "Who runs the teacher; auto: vllm if installed.")
    endpoint: str | None = knob(
        None, "URL", "Where engines openai and anthropic ask; the provider's own if not given."
    )
    api_key_env: str | None = knob(
        None,
        "name",
        "Environment variable that holds the endpoint's key; never the key itself.",
        pattern=r"^[A-Z][A-Z0-9_]{0,63}$",
    )
    mode: Literal["answer", "score"] = knob(
        "answer", "name", "answer: the teacher writes; score: it rates the rows' own answers."
    )
    n: int = knob(1, "responses", "Responses to each example.", ge=1, le=128)
    turns: Literal["auto", "all", "last"] = knob(
        "auto",
        "name",
        "all: the teacher answers each user turn, seeing its own earlier replies; last: the last "
        "one, after the row's replies; auto: all for conversation.",
    )
    temperature: float = knob(0.0, "1", "Sampling temperature; 0 is greedy.", ge=0, le=2)
    top_p: float = knob(1.0, "probability", "Nucleus of the sampling.", gt=0, le=1)
    frequency_penalty: float = knob(
        0.0, "1", "Taken off a token's logit for each time it was written.", ge=-2, le=2
    )
    presence_penalty: float = knob(
        0.0, "1", "Taken off the logit of a token that was written at all.", ge=-2, le=2
    )
    stop: tuple[str, ...] = knob((), "texts", "An answer ends before any of these.")
    reasoning: Literal["none", "chain_of_thought", "chain_of_density"] = knob(
        "none",
        "name",
        "What the teacher is told to do before it answers; the student is not told. "
        "chain_of_density: for summaries. curate.rationale says what is learned of it.",
    )
    instruction: str | None = knob(
        None, "text", "Put to the teacher after each question, in place of reasoning's own words."
    )
    max_tokens: int = knob(512, "tokens", "Longest answer.", ge=1)
    max_tokens_retry: int | None = knob(
        None, "tokens", "Answers cut off at max_tokens are continued once, up to this length.", ge=1
    )
    max_model_len: int | None = knob(
        None, "tokens", "Longest prompt plus answer; the model's own limit if not given.", ge=2
    )
    top_k: int = knob(
        16,
        "tokens",
        "Teacher log-probabilities stored for each generated token; 0 stores text only.",
        ge=0,
        le=100,
    )
    dtype: str = knob("auto", "name", "Precision of the weights; auto: as stored.")
    seed: int = knob(0, "1", "Seed of the sampling.", ge=0)
    min_success_ratio: float = knob(
        0.7, "ratio of responses", "Fewer accepted responses than this fail the stage.", ge=0, le=1
    )
    shard_size: int = knob(4096, "examples", "Examples in one file of the artifact.", ge=1)
    spending: Spending = Spending()
    runtime: GenerateRuntime = GenerateRuntime()

    @model_validator(mode="after")
    def _fits_together(self) -> "Generate":
        if self.n > 1 and self.temperature == 0:
            raise ValueError("n > 1 asks for the same answer again; set a temperature above 0")
        if self.n > 1 and self.mode == "score":
            raise ValueError("mode: score rates the one answer of a row; set n: 1")
        if self.max_tokens_retry is not None and self.max_tokens_retry <= self.max_tokens:
            raise ValueError("max_tokens_retry must be above max_tokens")
        if self.stop and self.top_k:
            raise ValueError(
                "stop cuts the text between tokens, so that no signal belongs to it; set top_k: 0"
            )
        if self.instruction and self.mode == "score":
            raise ValueError("mode: score asks nothing, so there is no place for an instruction")
        if self.endpoint and "@" in self.endpoint:
            raise ValueError("endpoint must not hold credentials; name a variable in api_key_env")
        return self


class Loss(Section):
    """One term of the objective: the loss, its weight and temperature, and its own options."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = knob(..., "name", "The loss, by the name of its function.")
    weight: float = knob(1.0, "1", "Its share of the objective.", ge=0)
    temperature: float = knob(
        1.0, "1", "Distillation temperature; the term is multiplied by its square.", gt=0, le=20
    )

    @property
    def options(self) -> dict[str, float]:
        """What is given besides: the alpha, beta or mu of its function."""
        return dict(self.model_extra or {})


class TrainRuntime(Section):
    """Where and how fast the student trains; never what it learns."""

    device: Literal["auto", "cpu", "cuda"] = knob("auto", "name", "Where the student trains.")
    num_threads: int | None = knob(None, "threads", "CPU threads; all cores if not given.", ge=1)
    micro_batch_tokens: int = knob(
        8192, "tokens", "Padded tokens in one forward and backward; bounds the memory.", ge=1
    )
    checkpoint_seconds: float = knob(
        300.0, "seconds", "Time between checkpoints; a killed run resumes at the last.", ge=0
    )
    packing: bool = knob(
        False, "yes or no", "Several examples share a row and see only themselves: less padding."
    )
    num_processes: int = knob(
        1, "processes", "Processes that train together on each machine, each on its part.", ge=1
    )
    num_nodes: int = knob(
        1, "machines", "Machines that train together; `retort node` runs on each other one.", ge=1
    )
    accelerate_config: str | None = knob(
        None, "path", "A file of `accelerate config`, for FSDP2; its processes and machines count."
    )
    timeout_seconds: float = knob(
        604_800.0, "seconds", "The stage is ended and fails after this time.", gt=0
    )


class Lora(Section):
    """Low-rank adapters are trained in place of the whole student, and merged into it.

    Source: Hu et al. 2022 (arXiv:2106.09685); QLoRA: Dettmers et al. 2023 (arXiv:2305.14314).
    """

    rank: int = knob(16, "dimensions", "Rank of each adapter.", ge=1)
    alpha: int = knob(32, "1", "An adapter's output is multiplied by alpha / rank.", ge=1)
    dropout: float = knob(0.0, "probability", "Dropout before each adapter.", ge=0, lt=1)
    target_modules: tuple[str, ...] = knob(
        (), "names", "Layers that get one; empty: every linear layer but the head."
    )
    quantize: Literal["none", "nf4"] = knob(
        "none", "name", "nf4: the frozen weights in 4 bits (QLoRA); needs CUDA and bitsandbytes."
    )


class Train(Section):
    """The student learns from the kept responses and, where stored, the teacher's signal."""

    student: str = knob(..., "path or hub id", "The base model that becomes the student.")
    losses: tuple[Loss, ...] = knob(
        (),
        "terms",
        "The objective. Empty: 0.2 cross_entropy + 0.8 forward_kl with a signal, "
        "cross_entropy without.",
    )
    teacher: Literal["stored", "live"] = knob(
        "stored",
        "name",
        "Where its distribution comes from. stored: the captured signal; live: the teacher is "
        "asked while the student learns, in memory or, with engine openai, at generate.endpoint.",
    )
    live_top_k: int = knob(
        16, "tokens", "Log-probabilities that a live endpoint gives for each token.", ge=1, le=100
    )
    text: Literal["teacher", "expected"] = knob(
        "teacher", "name", "What is learned: the teacher's text, or the rows' own answers."
    )
    controls: tuple[Literal["fine_tuning", "gold"], ...] = knob(
        (),
        "names",
        "What the student is compared with: the same base, rows and passes, plain fine-tuning on "
        "the teacher's text (fine_tuning) or on the rows' own answers (gold).",
    )
    learning_rate: float = knob(
        2e-5, "1", "Peak step size of AdamW; for adapters 1e-4 to 2e-4 is usual.", gt=0
    )
    batch_size: int = knob(32, "examples", "Examples in one optimizer step.", ge=1)
    num_epochs: int = knob(3, "passes", "Passes over the kept responses.", ge=1)
    warmup_ratio: float = knob(
        0.03, "ratio of steps", "Steps of linear warm-up before the decay.", ge=0, lt=1
    )
    schedule: Literal["cosine", "linear", "constant"] = knob(
        "cosine", "name", "How the learning rate decays after the warm-up."
    )
    min_learning_rate_ratio: float = knob(0.0, "ratio of peak", "Where the decay ends.", ge=0, le=1)
    keep: Literal["best", "last"] = knob(
        "best", "name", "best: the student after the pass with the lowest validation loss."
    )
    early_stopping: int | None = knob(
        None, "passes", "Stop after so many passes without a lower validation loss.", ge=1
    )
    lora: Lora | None = knob(None, "section", "Train adapters in place of all weights.")
    gradient_checkpointing: bool = knob(
        False, "yes or no", "Compute activations again in the backward pass: less memory, slower."
    )
    weight_decay: float = knob(0.0, "1", "Decoupled decay of weight matrices.", ge=0)
    adam_beta2: float = knob(0.999, "1", "Decay of the squared gradient's average.", gt=0, lt=1)
    max_grad_norm: float = knob(1.0, "L2 norm", "Gradients are clipped to this norm.", gt=0)
    max_length: int = knob(2048, "tokens", "Longer prompt plus response is left out.", ge=2)
    dtype: Literal["float32", "bfloat16"] = knob(
        "float32", "name", "Precision in which the student trains."
    )
    save_dtype: Literal["base", "float32", "bfloat16", "float16"] = knob(
        "base", "name", "Precision in which it is saved, evaluated and released; base: the base's."
    )
    seed: int = knob(0, "1", "Seed of the order of the examples and of dropout.", ge=0)
    runtime: TrainRuntime = TrainRuntime()
