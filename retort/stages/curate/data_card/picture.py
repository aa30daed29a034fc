"""The data card as one picture, an SVG that is the same bytes for the same card.

Pale is what was there before, blue what is learned from.
"""

from typing import TYPE_CHECKING, Any

from retort.metrics.comparison import drawing
from retort.metrics.comparison.drawing import BLUE, DARK, GRAY, OCHRE, PALE, RED, SKY, shorten
from retort.stages.curate.data_card.card import DataCard, FunnelStep, GroupBalance, LengthHistogram

if TYPE_CHECKING:
    from retort.metrics.comparison.drawing import Axes

MOST_ROWS = 10
PANELS: Any = [["funnel", "reasons"]] * 2 + [["balance", "prompts"], ["balance", "answers"]]
REASONS = {"answer rejected": RED, "row quarantined": OCHRE}


def picture(card: DataCard) -> bytes:
    """Returns a card as an SVG, 1200 by 950 pixels on white: funnel, reasons, balance, lengths."""
    with drawing.figure(1200, 950) as figure:
        figure.set_layout_engine("constrained", w_pad=0.2, h_pad=0.2, wspace=0.06, hspace=0.06)
        name = shorten(card.name, 64)
        figure.suptitle(f"{name}\n", x=0.016, ha="left", size=19, weight="bold")
        facts = shorten(f"{card.task_type} · {card.summary}", 150)
        figure.text(0.016, 0.935, facts, color=GRAY)
        panels = figure.subplot_mosaic(PANELS)
        _funnel(panels["funnel"], card.funnel)
        _reasons(panels["reasons"], card.reasons.largest)
        _balance(panels["balance"], card.balance)
        for what, histogram in card.lengths.items():
            _lengths(panels[what], what, histogram)
        return drawing.svg(figure, "Data card")


def _funnel(axes: "Axes", steps: list[FunnelStep]) -> None:
    """One row a step: what is left in blue, what the step took in red beside it."""
    counts, rows = [step.count for step in steps], range(len(steps))
    axes.barh(rows, counts, 0.55, color=[BLUE if step.is_milestone else SKY for step in steps])
    # An edge shows also what is too little for a bar.
    took = [row for row in rows if steps[row].removed > 0]
    look: Any = {"left": [counts[row] for row in took], "color": RED, "edgecolor": RED}
    axes.barh(took, [steps[row].removed for row in took], 0.55, linewidth=0.8, **look)
    for row, step in enumerate(steps):
        weight = "bold" if step.is_milestone else "normal"
        drawing.beside(axes, 52, row, f"{step.count:,}", weight=weight)
        drawing.beside(axes, 96, row, step.change, color=RED if step.removed > 0 else BLUE)
    _rows(axes, "From rows in to what is learned from", [step.step for step in steps])


def _reasons(axes: "Axes", reasons: list[tuple[str, str, int]]) -> None:
    """The largest: the reason above a thin bar, its number at the right."""
    if not reasons:
        _nothing(axes, "Nothing was rejected and no row was bad.")
        return
    for kind, color in REASONS.items():
        axes.plot([], [], "s", color=color, label=kind)
    for row, (reason, kind, count) in enumerate(reasons[:MOST_ROWS]):
        axes.barh(row + 0.2, count, 0.2, color=REASONS[kind], edgecolor=REASONS[kind])
        axes.text(0, row, shorten(reason, 62), va="bottom")
        drawing.beside(axes, 0, row, f"{count:,}", weight="bold", va="bottom")
    rest = reasons[MOST_ROWS:]
    more = f"and {len(rest):,} more reasons, {sum(n for _, _, n in rest):,} in all" if rest else ""
    _rows(axes, "Left behind, and why", [], more)


def _balance(axes: "Axes", spread: GroupBalance) -> None:
    """Pairs of bars by share, asked and learned from; a mark where the learned are weighted."""
    if not spread.before:
        _nothing(axes, "There are no train examples.")
        return
    names, shares = list(spread.before)[:MOST_ROWS], spread.shares
    rows = range(len(names))
    before, after = ([shares[kind][name] for name in names] for kind in ("before", "after"))
    axes.barh([row - 0.17 for row in rows], before, 0.3, color=PALE, label="examples")
    axes.barh([row + 0.17 for row in rows], after, 0.3, color=BLUE, label="learned from")
    if spread.weighted:
        weighted = [shares["weighted"][name] for name in names]
        axes.plot(weighted, rows, "|", color=DARK, ms=16, mew=2, label="as weighted")
    for row in rows:
        drawing.beside(axes, 52, row, f"{before[row]:.1%}", color=GRAY)
        drawing.beside(axes, 96, row, f"{after[row]:.1%}", weight="bold")
    num_more = len(spread.before) - len(names)
    notes = [f"of {spread.num_sampled:,} examples"] if spread.num_sampled else []
    notes += [f"and {num_more:,} more groups"] if num_more else []
    labels = [name.removeprefix("cluster: ") for name in names]
    _rows(axes, f"Balance by {shorten(spread.by, 22)}", labels, ", ".join(notes))


def _lengths(axes: "Axes", what: str, histogram: LengthHistogram) -> None:
    """Two histograms, one over the other: all that was asked or answered, and what is learned."""
    if not histogram.before.num:
        _nothing(axes, f"No {what} of known length.")
        return
    # The last bin may reach further than the others, and is drawn as wide as they are.
    bins, edges = range(len(histogram.before.counts)), histogram.edges
    before, after = (f"{n}: {c.words}" for n, c in histogram.named.items())
    axes.bar(bins, histogram.before.counts, 0.88, color=PALE, label=before, align="edge")
    axes.bar(bins, histogram.after.counts, 0.88, color=BLUE, label=after, align="edge")
    marks = bins[:: max(1, -(-len(bins) // 8))]
    axes.set_xticks(marks, [f"{edges[mark]:,}" for mark in marks])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_title(f"{what.capitalize()}, in {histogram.unit}", pad=36)
    axes.set_xlabel(f"at most {histogram.highest:,} in a bin; the longest: {edges[-1] - 1:,}")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderpad=0, handlelength=1.2)


def _rows(axes: "Axes", title: str, names: list[str], more: str = "") -> None:
    """Names the rows of a panel from the top down, and says below them what is not shown."""
    axes.set_title(title)
    axes.set_ylim(max(len(names), MOST_ROWS) - 0.4, -0.6)
    drawing.name_rows(axes, [shorten(name, 27) for name in names])
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel(more)
    if axes.get_legend_handles_labels()[1]:
        look = {"columnspacing": 1, "handletextpad": 0.4, "handlelength": 1.2, "borderpad": 0}
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, **look)


def _nothing(axes: "Axes", text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, color=GRAY, ha="center", transform=axes.transAxes)
