"""The data card as data, which `data_card.json` holds, and how it is put into words."""

from collections.abc import Mapping
from dataclasses import dataclass

MILESTONES = (
    "rows in",
    "examples asked",
    "responses",
    "responses accepted",
    "kept",
    "learned from",
)


@dataclass(frozen=True)
class FunnelStep:
    """A step of the funnel: what is left after it, what it removed, and why.

    A step that removes less than nothing adds: several responses to an example are more than
    examples.
    """

    step: str
    count: int
    removed: int = 0
    why: str = ""

    @property
    def is_milestone(self) -> bool:
        """Whether the step is shown also where it removes nothing."""
        return self.step in MILESTONES

    @property
    def change(self) -> str:
        """What the step removed, as it changes the count; nothing for nothing."""
        if not self.removed:
            return ""
        return f"\N{MINUS SIGN}{self.removed:,}" if self.removed > 0 else f"+{-self.removed:,}"


@dataclass(frozen=True)
class Reasons:
    """How many answers were rejected and rows quarantined, by reason, the most frequent first."""

    rejected: dict[str, int]
    quarantined: dict[str, int]

    @property
    def largest(self) -> list[tuple[str, str, int]]:
        """All reasons with their kind and count, the most frequent first."""
        kinds = {"answer rejected": self.rejected, "row quarantined": self.quarantined}
        found = [(key, kind, n) for kind, counts in kinds.items() for key, n in counts.items()]
        return sorted(found, key=lambda reason: (-reason[2], reason[0]))


@dataclass(frozen=True)
class GroupBalance:
    """How train examples spread over groups (`before`), and the responses learned from (`after`).

    `weighted` is how often a pass over the data shows each group, empty where every weight is 1;
    `num_sampled` is how many examples were grouped where not all were, else None.
    """

    by: str
    before: dict[str, int]
    after: dict[str, int]
    weighted: dict[str, float]
    num_sampled: int | None = None

    @property
    def title(self) -> str:
        """What the groups are, and of how many examples."""
        return f"Balance by {self.by}" + (
            f" of {self.num_sampled:,} examples" if self.num_sampled else ""
        )

    @property
    def shares(self) -> dict[str, dict[str, float]]:
        """Each group's share of `before`, `after` and `weighted`."""
        kinds: dict[str, Mapping[str, float]] = {
            "before": self.before,
            "after": self.after,
            "weighted": self.weighted,
        }
        totals = {kind: sum(counts.values()) or 1 for kind, counts in kinds.items()}
        return {
            kind: {name: count / totals[kind] for name, count in counts.items()}
            for kind, counts in kinds.items()
        }

    @property
    def largest_share(self) -> float:
        """The share that the longest bar shows."""
        return max(share for shares in self.shares.values() for share in shares.values()) or 1.0


@dataclass(frozen=True)
class LengthCounts:
    """How many texts there are, how long they are, and how many are in each bin."""

    num: int
    min: int | None
    median: float | None
    p95: float | None
    max: int | None
    counts: list[int]

    @property
    def statistics(self) -> dict[str, str]:
        """The least, the median, the 95th percentile and the largest length; nothing of no text."""
        found = {"min": self.min, "median": self.median, "p95": self.p95, "max": self.max}
        return {name: f"{n:,.10g}" for name, n in found.items() if n is not None}

    @property
    def words(self) -> str:
        """The same in one line."""
        return " · ".join(f"{name} {value}" for name, value in self.statistics.items())


@dataclass(frozen=True)
class LengthHistogram:
    """Lengths in `unit`, tokens or words, of all responses to train examples and of those learned
    from. A bin holds its lower edge and not its upper one."""

    unit: str
    edges: list[int]
    before: LengthCounts
    after: LengthCounts


@dataclass(frozen=True)
class SourceDigest:
    """Where the rows of a split came from, and the digest of their content."""

    place: str
    digest: str


@dataclass(frozen=True)
class DataCard:
    """What became of a job's rows. `recognised` counts the formats, `splits` rows, examples and
    kept responses by split; `lengths` are of prompts and answers."""

    name: str
    task_type: str
    funnel: list[FunnelStep]
    reasons: Reasons
    recognised: dict[str, int]
    splits: dict[str, dict[str, int]]
    balance: GroupBalance
    lengths: dict[str, LengthHistogram]
    sources: dict[str, SourceDigest]

    @property
    def summary(self) -> str:
        """One sentence: how many rows came in, and how many responses are learned from."""
        formats = ", ".join(f"{name} {count:,}" for name, count in self.recognised.items())
        return (
            f"{self.funnel[0].count:,} rows in, {self.funnel[-1].count:,} responses learned from."
            + (f" Recognised: {formats}." if formats else "")
        )
