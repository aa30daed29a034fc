"""The knobs of the student: what it learns from the kept responses, and how."""

from typing import Literal

from pydantic import ConfigDict, field_validator

from retort.records import JsonObject
from retort.spec.section import MAX_SEED, Section, knob
from retort.spec.student import Student

# The losses that compare what lies inside teacher and student, and not only what they give out.
FEATURE_LOSSES = ("attention_relations", "hidden_states")


class Loss(Section):
    """One term of the objective: the loss, its weight and temperature, and its own options."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = knob(..., "name", "The loss, by the name of its function.")
    weight: float = knob(1.0, "1", "Its share of the objective.", ge=0)
    temperature: float = knob(
        1.0, "1", "Distillation temperature; the term is multiplied by its square.", gt=0, le=20
    )

    @property
    def options(self) -> JsonObject:
        """The options of its function besides: alpha, beta, mu, layers ..."""
        return dict(self.model_extra or {})

    @property
    def compares_features(self) -> bool:
        """Whether it compares hidden states or attention, for which both models must be there."""
        return self.name in FEATURE_LOSSES


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
    num_nodes: int = knob(1, "machines", "Nodes of the Ray cluster that train together.", ge=1)
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
        (), "names", "Layers that get an adapter; empty: every linear layer but the head."
    )
    quantize: Literal["none", "nf4"] = knob(
        "none", "name", "nf4: the frozen weights in 4 bits (QLoRA); needs CUDA and bitsandbytes."
    )


class OnPolicy(Section):
    """Rounds after all passes, in which the student learns from scores of its own answers.

    The student answers, the teacher scores just these tokens, and the student learns.

    Sources: Agarwal et al. 2024 (arXiv:2306.13649), algorithm 1; that the source of the prefixes
    and the loss are separate choices: arXiv:2605.16826.
    """

    rounds: int = knob(12, "rounds", "How often the student answers and learns.", ge=1, le=999)
    prompts: int = knob(1024, "examples", "Training examples that it answers in a round.", ge=1)
    n: int = knob(1, "answers", "Its answers to each of them.", ge=1, le=64)
    passes: int = knob(
        1,
        "passes",
        "Passes over a round's rows: more of them learn more from what was scored, from answers "
        "of a student that is less and less the present one.",
        ge=1,
    )
    temperature: float = knob(1.0, "1", "Sampling temperature of its answers.", gt=0, le=2)
    max_tokens: int | None = knob(
        None, "tokens", "Its longest answer; generate.max_tokens if not given.", ge=1
    )
    engine: str = knob(
        "auto",
        "name",
        "What runs the student in the rounds: vllm or transformers. auto: the teacher's engine, or "
        "vllm where the teacher is at an endpoint.",
        added_later=True,
    )
    grow: int = knob(
        0,
        "rounds",
        "Rounds over which the longest answer grows from a quarter to max_tokens "
        "(arXiv:2605.31490); 0: it has its whole length at once.",
        ge=0,
    )
    share: float = knob(
        1.0,
        "ratio of rows",
        "Share of a round's rows that are its own answers; the others are stored ones of the "
        "teacher's.",
        gt=0,
        le=1,
    )
    losses: tuple[Loss, ...] = knob(
        (), "terms", "The objective of the rounds. Empty: forward_kl at temperature 2."
    )
    learning_rate: float | None = knob(
        None, "1", "Peak step size in the rounds; train.learning_rate if not given.", gt=0
    )
    decay: float = knob(
        0.5,
        "ratio of rounds",
        "Share of the rounds, the last ones, in which the step size falls to 0. The rounds before "
        "are reused where `rounds` is raised later.",
        ge=0,
        le=1,
    )
    held_out: int = knob(
        128, "examples", "Validation examples that it answers in a round, to be judged by.", ge=0
    )
    max_rise: float = knob(
        0.5,
        "ratio of loss",
        "A round is not kept where the loss on held-out answers rises by more than this share. "
        "The first rounds at a high step size lose a little before they gain.",
        ge=0,
    )
    max_length_ratio: float = knob(
        3.0,
        "ratio of tokens",
        "The rounds end where its answers are on average so many times as long as at first.",
        gt=1,
    )
    max_truncated: float = knob(
        0.5, "ratio of answers", "The rounds end where more answers than this are cut off.", ge=0
    )
    max_repeated: float = knob(
        0.2, "ratio of answers", "The rounds end where more answers than this repeat.", ge=0
    )
    max_divergence: float = knob(
        4.0,
        "ratio of nats",
        "The rounds end where KL(student || teacher) on its answers is so many times that at "
        "first; at a high step size it doubles before it falls.",
        gt=1,
    )

    def longest(self, number: int, most: int) -> int:
        """Returns the longest answer in a round, counted from 1, in tokens; `most` is that of the
        teacher."""
        most = self.max_tokens or most
        if number > self.grow:
            return most
        return max(1, round(most * (0.25 + 0.75 * (number - 1) / self.grow)))

    def learning_rates(self, number: int) -> tuple[float, float]:
        """Returns the factors on the peak learning rate before and after a round, between which it
        falls linearly: 1 until the decay, 0 after the last round."""
        falling = self.rounds * self.decay

        def factor(done: int) -> float:
            return min(1.0, (self.rounds - done) / falling) if falling else 1.0

        return factor(number - 1), factor(number)


class Train(Section):
    """The student learns from the kept responses and, where stored, the teacher's signal."""

    student: str | Student = knob(
        ...,
        "path or hub id",
        "The base model that becomes the student; or from_teacher, with how it is cut.",
    )
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
    controls: tuple[str, ...] = knob(
        (),
        "names",
        "What the student is compared with: the same base, rows and passes, plain fine-tuning on "
        "the teacher's text (fine_tuning) or on the rows' own answers (gold); or the student "
        "itself, from random weights of the base's shape (random_start), or without the rows of "
        "one of several teachers (without_NAME), or without one of several losses "
        "(without_loss_NAME), or with more passes over the stored rows in place "
        "of the rounds: as many steps (offline_steps), or for as long (offline_cost).",
    )
    start: Literal["base", "random"] = knob(
        "base",
        "name",
        "The weights with which training begins: the base's, or random ones by its own "
        "initializer and the seed.",
        added_later=True,
    )
    top_k: int | None = knob(
        None,
        "tokens",
        "How many of the stored log-probabilities of each token are read, the largest ones; the "
        "others count as the tail. All if not given.",
        added_later=True,
        ge=1,
    )
    stop_after: float | None = knob(
        None,
        "ratio of steps",
        "Training ends after this share of its steps, as far as it is then; a longer one goes on "
        "from there. `retort sweep` compares its trials so.",
        added_later=True,
        gt=0,
        lt=1,
    )
    cool_down: float = knob(
        0.0,
        "ratio of steps",
        "With stop_after: so many more steps, as a share of those made, in which the learning rate "
        "falls to 0. A longer training goes on from before them.",
        added_later=True,
        ge=0,
        le=1,
    )
    without_teacher: str | None = knob(
        None,
        "name",
        "One of several teachers whose answers are left out.",
        added_later=True,
    )
    max_examples: int | None = knob(
        None,
        "examples",
        "Learn from so many of the kept training examples: the first by a digest of their ids, so "
        "that fewer of them are among more.",
        added_later=True,
        ge=1,
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
    seed: int = knob(0, "1", "Seed of the order of the examples and of dropout.", ge=0, le=MAX_SEED)
    runtime: TrainRuntime = TrainRuntime()
    on_policy: OnPolicy | None = knob(
        None,
        "section",
        "Rounds in which the student learns on its own answers, after all passes.",
        added_later=True,
    )

    @field_validator("losses")
    @classmethod
    def _one_counts(cls, losses: tuple[Loss, ...]) -> tuple[Loss, ...]:
        if losses and not any(loss.weight for loss in losses):
            raise ValueError("every loss has weight 0, so that nothing would be learned")
        return losses
