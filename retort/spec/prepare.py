"""The knobs of the data: where rows come from, and which of them are asked."""

import math
from datetime import UTC, datetime
from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from retort.records import Split
from retort.spec.section import Section, knob


class HubDataset(Section):
    """A dataset of the Hugging Face hub, or a folder that `datasets` saved."""

    # The titles are what the form of Prefect's page lets one choose from.
    model_config = ConfigDict(title="dataset")
    dataset: str = knob(..., "hub id or path", "The dataset.")
    config: str | None = knob(None, "name", "Its configuration, where it has several.")
    split: str = knob("train", "name", "The split of it that is read.")
    revision: str | None = knob(None, "name", "A commit or tag; pins what is read.")
    streaming: bool = knob(False, "yes or no", "Read it row by row, without a copy on the disk.")


class Traffic(Section):
    """Logged calls, chosen by time and metadata: OpenTelemetry, Langfuse, LiteLLM, MLflow, vLLM."""

    model_config = ConfigDict(title="traffic")
    traffic: str | tuple[str, ...] = knob(..., "path, URL, glob, folder or list", "The logs.")
    since: datetime | None = knob(None, "date or time, UTC", "The first moment that is read.")
    until: datetime | None = knob(None, "date or time, UTC", "The first that is not read any more.")
    where: dict[str, str | tuple[str, ...]] = knob(
        {}, "texts by names", "The metadata that a call must have: one of the given texts."
    )

    @property
    def first_second(self) -> float:
        """`since` in seconds since 1970."""
        return _seconds(self.since, -math.inf)

    @property
    def last_second(self) -> float:
        """`until` in seconds since 1970."""
        return _seconds(self.until, math.inf)


def _seconds(when: datetime | None, otherwise: float) -> float:
    if when is None:
        return otherwise
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


Source = (
    Annotated[str, Field(title="path")]
    | Annotated[tuple[str, ...], Field(title="paths")]
    | HubDataset
    | Traffic
)


class Deduplicate(Section):
    """Rows with the same question are sent to the teacher once; the first of them is kept."""

    exact: bool = knob(
        True, "yes or no", "Remove rows that differ only in case, white space and punctuation."
    )
    near: bool = knob(True, "yes or no", "Remove rows that differ only in a few words.")
    similarity: float = knob(
        0.6,
        "ratio",
        "Least share of three-word sequences in common (Jaccard); a changed word in twenty leaves "
        "about 0.75, one in ten 0.55.",
        gt=0,
        le=1,
    )
    numbers_matter: bool = knob(
        True, "yes or no", "Never treat rows with different numbers as copies."
    )
    words_matter: bool = knob(
        True,
        "yes or no",
        "Rows that differ in a content word of a short question, in a name, or in what a template "
        "fills in ask different questions.",
    )


class Decontaminate(Section):
    """Rows of the comparison are kept out of training."""

    enabled: bool = knob(
        True, "yes or no", "Remove train rows that this job's validation or test rows contain."
    )
    against: tuple[str, ...] = knob(
        (), "paths or URLs", "Further files whose rows must not be learned from."
    )
    overlap: float = knob(
        0.6,
        "ratio",
        "A row that holds this share of a held-out row's three-word sequences is removed.",
        gt=0,
        le=1,
    )


class Balance(Section):
    """How the train rows spread over groups, and how many of each group are used."""

    by: str = knob(
        "auto",
        "name",
        "label, cluster (of the prompts' words), or metadata.KEY; auto: label where rows have "
        "one, else cluster.",
        pattern=r"^(auto|label|cluster|metadata\..+)$",
    )
    cap: int | None = knob(None, "rows", "At most so many train rows of each group.", ge=1)
    num_clusters: int = knob(8, "clusters", "Number of clusters.", ge=2, le=64)


class Prepare(Section):
    """Rows in, checked examples out."""

    task_type: str = knob("math", "name", "How rows become prompts and how answers are read.")
    train: Source = knob(
        ...,
        "path, URL, glob, folder, list, dataset or traffic",
        "What the teacher answers to be learned.",
    )
    validation: Source | None = knob(
        None, "as train", "Watched while training; the test rows when none are given."
    )
    test: Source | None = knob(None, "as train", "The final comparison; never trained on.")
    validation_ratio: float = knob(
        0.0, "ratio of rows", "Train rows set apart for validation by their hash.", ge=0, lt=1
    )
    test_ratio: float = knob(
        0.0, "ratio of rows", "Train rows set apart for the test by their hash.", ge=0, lt=1
    )
    format: str = knob(
        "auto", "name", "The form of the rows; auto: each row is recognised by its columns."
    )
    columns: dict[str, str] = knob(
        {}, "names", "Our name of a column to the file's: {question: Frage, answer: Antwort}."
    )
    keep_columns: tuple[str, ...] = knob(
        (),
        "names",
        "Columns of the rows that are kept as metadata, for report.slices and evaluate.graders.",
        added_later=True,
    )
    system_prompt: str | None = knob(
        None, "text", "System message of rows that have none of their own."
    )
    template: str | None = knob(
        None, "text", "The user's message, with columns in braces; the task type's if not given."
    )
    labels: tuple[str, ...] = knob(
        (), "texts", "The closed set of answers, where the rows do not name it."
    )
    max_summary_words: int = knob(80, "words", "The budget of a summary.", ge=5)
    scrub: tuple[str, ...] = knob(
        (), "names", "Scrubbers that take personal data out of every text, in order."
    )
    max_bad_ratio: float = knob(
        0.05, "ratio of rows", "More quarantined rows than this stop the job.", ge=0, le=1
    )
    max_row_bytes: int = knob(1_000_000, "bytes", "A longer row is quarantined.", ge=100)
    deduplicate: Deduplicate = Deduplicate()
    decontaminate: Decontaminate = Decontaminate()
    balance: Balance = Balance()
    limit: int | None = knob(
        None, "rows", "Most train rows to use, from each group of balance in proportion.", ge=1
    )
    shard_size: int = knob(4096, "rows", "Examples in one file of the artifact.", ge=1)

    def has(self, split: Split) -> bool:
        """Whether there are rows of a split: given, or set apart from the train rows."""
        return getattr(self, split) is not None or getattr(self, f"{split}_ratio") > 0

    @model_validator(mode="after")
    def _fits_together(self) -> "Prepare":
        for split in ("validation", "test"):
            if getattr(self, split) is not None and getattr(self, f"{split}_ratio"):
                raise ValueError(f"{split} is given, so {split}_ratio must stay 0")
        if self.validation_ratio + self.test_ratio >= 1:
            raise ValueError("validation_ratio and test_ratio leave nothing to train on")
        return self
