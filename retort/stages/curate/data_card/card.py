"""The data card as data, which `data_card.json` holds, and as sections of the report's pages:
tables in Markdown, bars in HTML."""

from dataclasses import dataclass, field

from retort.metrics.comparison import pages

MILESTONES = {
    *("rows in", "examples asked", "responses", "responses accepted", "kept", "learned from"),
}
MOST_REASONS, MOST_GROUPS = 10, 12
PICTURE = "The same as a picture: `data_card.svg`, beside this page."


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
        """Whether the step stands out, also where it removes nothing."""
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
        reasons = [(key, kind, n) for kind, counts in kinds.items() for key, n in counts.items()]
        return sorted(reasons, key=lambda reason: (-reason[2], reason[0]))


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
    def shares(self) -> dict[str, dict[str, float]]:
        """Each group's share of `before`, `after` and `weighted`."""
        kinds = {kind: vars(self)[kind] for kind in ("before", "after", "weighted")}
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
        known = {"min": self.min, "median": self.median, "p95": self.p95, "max": self.max}
        return {name: f"{n:,.10g}" for name, n in known.items() if n is not None}

    @property
    def words(self) -> str:
        """The same in one line."""
        return " · ".join(f"{name} {value}" for name, value in self.statistics.items())


@dataclass(frozen=True)
class LengthHistogram:
    """Lengths in `unit`, tokens or words, of all responses to train examples (`before`) and of
    those learned from (`after`). A bin holds its lower edge and not its upper one."""

    unit: str
    edges: list[int]
    before: LengthCounts
    after: LengthCounts

    @property
    def named(self) -> dict[str, LengthCounts]:
        """Both by what they are called."""
        return {"all": self.before, "learned from": self.after}

    @property
    def highest(self) -> int:
        """The count of the fullest bin."""
        return max(self.before.counts + self.after.counts)


@dataclass(frozen=True)
class DataCard:
    """What became of a job's rows.

    `recognised` counts the formats, `splits` rows, examples and kept responses by split; `lengths`
    are of prompts and answers; `sources` says by split where rows came from, with their digest.
    `origins` counts the prompts of the job's own rows and those that a model wrote, by the way.
    """

    name: str
    task_type: str
    funnel: list[FunnelStep]
    reasons: Reasons
    recognised: dict[str, int]
    splits: dict[str, dict[str, int]]
    balance: GroupBalance
    lengths: dict[str, LengthHistogram]
    sources: dict[str, dict[str, str]]
    origins: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One sentence: how many rows came in, and how many responses are learned from."""
        formats = ", ".join(f"{name} {count:,}" for name, count in self.recognised.items())
        recognised = f" Recognised: {formats}." if formats else ""
        first, last = self.funnel[0].count, self.funnel[-1].count
        return f"{first:,} rows in, {last:,} responses learned from.{recognised}"


def as_markdown(card: DataCard) -> str:
    """Returns the funnel, the reasons, the balance and the lengths as tables under one heading."""
    steps = [
        [step.step, f"{step.count:,}", step.change, step.why]
        for step in card.funnel
        if step.removed or step.step not in ("exact duplicates", "near duplicates")
    ]
    by_reason = card.reasons.largest
    reasons = [[reason, kind, f"{count:,}"] for reason, kind, count in by_reason[:MOST_REASONS]]
    if rest := by_reason[MOST_REASONS:]:
        reasons.append([f"{len(rest)} more reasons", "", f"{sum(n for _, _, n in rest):,}"])
    lengths = [
        [f"{what}, {label}", each.unit, *counts.statistics.values()]
        for what, each in card.lengths.items()
        for label, counts in each.named.items()
        if counts.num
    ]
    tables = [
        [["step", "left", "removed", "why"], *steps],
        [["reason", "what", "number"], *reasons],
        _balance(card.balance),
        _origins(card.origins),
        [["lengths", "in", "min", "median", "p95", "max"], *lengths],
    ]
    shown = [str(table) for rows in tables if (table := pages.markdown_table(rows))]
    return "\n\n".join(["## Data", pages.one_line(card.summary), *shown, PICTURE]) + "\n"


def _balance(spread: GroupBalance) -> list[list[str]]:
    """Returns groups by share, which is what can be compared; no row where there is one only."""
    headings = {"before": "examples", "after": "learned from", "weighted": "as weighted"}
    shares = {kind: of for kind, of in spread.shares.items() if of}
    names = list(spread.before) if len(spread.before) > 1 else []
    rows = [
        [
            name,
            *(f"{vars(spread)[kind][name]:,.0f} ({of[name]:.1%})" for kind, of in shares.items()),
        ]
        for name in names[:MOST_GROUPS]
    ]
    if more := names[MOST_GROUPS:]:
        rows.append([f"{len(more)} more groups", *[""] * len(shares)])
    return [[spread.by, *(headings[kind] for kind in shares)], *rows]


def _origins(origins: dict[str, dict[str, int]]) -> list[list[str]]:
    """Returns a row for each origin of training prompts; none where all are the job's own."""
    names = list(next(iter(origins.values()), {}))
    rows = [[way, *(f"{found[name]:,}" for name in names)] for way, found in origins.items()]
    return [["training prompts", *names], *rows]


def as_html(card: DataCard) -> str:
    """Returns the same as bars, for a page with the report's colours; it brings its own style."""
    return pages.html(
        "retort.stages.curate.data_card",
        "card.html",
        card=card,
        most_reasons=MOST_REASONS,
        most_groups=MOST_GROUPS,
    )
