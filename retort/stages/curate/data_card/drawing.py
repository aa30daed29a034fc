"""The data card as one picture, an SVG that is the same bytes for the same card.

Places are in pixels from the upper left corner. `pale` is what was there before, `blue` what is
learned from.
"""

from typing import TYPE_CHECKING, Any

from retort.stages.curate.data_card.text import change
from retort.stages.report.drawing import (
    BLUE,
    DARK,
    GRAY,
    LINE,
    OCHRE,
    PALE,
    POINTS_PER_PIXEL,
    RED,
    SKY,
    TRACK,
    area,
    bar,
    cut,
    drawing,
    inline,
    place,
    svg,
    write,
)

if TYPE_CHECKING:
    from retort.stages.report.drawing import Axes, Figure

WIDTH, HEIGHT, MARGIN, GAP = 1200, 950, 40, 56
PANEL = (WIDTH - 2 * MARGIN - GAP) // 2
TOPS, HEIGHTS = (142, 558), (350, 366)
MILESTONES = (
    "rows in",
    "examples asked",
    "responses",
    "responses accepted",
    "kept",
    "learned from",
)


def picture(card: dict[str, Any]) -> bytes:
    """Returns a card as an SVG, 1200 by 950 pixels on white: funnel, reasons, balance, lengths."""
    with drawing(WIDTH, HEIGHT) as figure:
        _head(figure, card)
        _funnel(_panel(figure, 0, 0, "From rows in to what is learned from"), card["funnel"])
        _reasons(_panel(figure, 1, 0, "What was left behind, and why"), card["reasons"])
        _balance(figure, card["balance"])
        _lengths(figure, card["lengths"])
        return svg(figure, "Data card")


def panels(card: dict[str, Any]) -> list[str]:
    """Returns a card's four panels as elements of a page, each a view of the one picture.

    The first holds the picture and the others point to it, so that all must stand on one page.
    """
    whole = inline(picture(card), "card", "Data card")
    drawn = whole[whole.index(">") + 1 : whole.rindex("</svg>")]
    views = []
    titles = ("Funnel", "Reasons", "Balance", "Lengths")
    for number, (title, height) in enumerate(zip(titles, _heights(card), strict=True)):
        row, column = divmod(number, 2)
        left = MARGIN + column * (PANEL + GAP)
        box = (left - 4, TOPS[row] - 34, PANEL + 12, height + 44)
        view = " ".join(f"{side * POINTS_PER_PIXEL:g}" for side in box)
        held = f'<g id="data-card">{drawn}</g>' if number == 0 else '<use href="#data-card"/>'
        head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{view}" role="img" '
        views.append(f'{head}aria-label="{title}">{held}</svg>')
    return views


def _heights(card: dict[str, Any]) -> tuple[float, ...]:
    """Returns how much of each panel is used."""
    num_steps, num_groups = len(card["funnel"]), len(card["balance"]["before"])
    num_reasons = sum(map(len, card["reasons"].values()))
    reasons = min(num_reasons, 11) * 33 if num_reasons else HEIGHTS[0]
    groups = 44 * num_groups + 10 if num_groups else HEIGHTS[1]
    return min(HEIGHTS[0], 32 * num_steps), reasons, min(HEIGHTS[1], groups), HEIGHTS[1]


def _head(figure: "Figure", card: dict[str, Any]) -> None:
    axes = area(figure, MARGIN, 30, WIDTH - 2 * MARGIN, 56)
    first, last = card["funnel"][0]["count"], card["funnel"][-1]["count"]
    write(axes, 0, 20, cut(card["name"], 64), size=19, weight="bold")
    facts = [card["task_type"], f"{first:,} rows in", f"{last:,} responses learned from"]
    forms = ", ".join(f"{form} {count:,}" for form, count in card["recognised"].items())
    facts += [forms] if forms else []
    write(axes, 0, 48, cut(" · ".join(facts), 150), color=GRAY, size=10)


def _funnel(axes: "Axes", steps: list[dict[str, Any]]) -> None:
    """One row a step: what is left in blue, what the step took in red beside it."""
    left, width = 142, 222
    scale = width / max(*(step["count"] + max(step["removed"], 0) for step in steps), 1)
    height = min(32.0, HEIGHTS[0] / len(steps))
    for at, step in enumerate(steps):
        y, count, removed = (at + 0.5) * height, step["count"], step["removed"]
        main = step["step"] in MILESTONES
        bold = "bold" if main else "normal"
        write(axes, 0, y, step["step"], weight=bold, color=DARK if main else GRAY)
        bar(axes, (left, y), (count * scale, 16), BLUE if main else SKY)
        if removed > 0:
            # Thin as it may be, what was taken can be seen.
            bar(axes, (left + count * scale, y), (max(removed * scale, 1.5), 16), RED)
        write(axes, left + width + 84, y, f"{count:,}", weight=bold, ha="right")
        write(axes, PANEL, y, change(removed), color=RED if removed > 0 else BLUE, ha="right")


def _reasons(axes: "Axes", reasons: dict[str, dict[str, int]]) -> None:
    """The ten largest: the reason above a thin bar, its number at the right."""
    colors = {"rejected": RED, "quarantined": OCHRE}
    found = [(n, key, kind) for kind in colors for key, n in reasons[kind].items()]
    found.sort(key=lambda reason: (-reason[0], reason[1]))
    if not found:
        _nothing(axes, "Nothing was rejected and no row was bad.", HEIGHTS[0])
        return
    _legend(axes, [(RED, "answers rejected"), (OCHRE, "rows quarantined")])
    shown, rest = found[:10], found[10:]
    for at, (count, reason, kind) in enumerate(shown):
        y = 12 + at * 33
        write(axes, 0, y, cut(reason, 62))
        write(axes, PANEL, y, f"{count:,}", weight="bold", ha="right")
        bar(axes, (0, y + 14), (PANEL, 6), TRACK)
        bar(axes, (0, y + 14), (max(PANEL * count / found[0][0], 1.5), 6), colors[kind])
    if rest:
        more = f"and {len(rest):,} more reasons, {sum(count for count, _, _ in rest):,} in all"
        write(axes, 0, 12 + 10 * 33, more, color=GRAY)


def _balance(figure: "Figure", spread: dict[str, Any]) -> None:
    """Pairs of bars by share, asked and learned from; a mark where the learned are weighted."""
    of = f" of {spread['num_sampled']:,} examples" if spread["num_sampled"] else ""
    axes = _panel(figure, 0, 1, f"Balance by {cut(spread['by'], 22)}{of}")
    if not spread["before"]:
        _nothing(axes, "There are no train examples.", HEIGHTS[1])
        return
    keys = [(PALE, "asked"), (BLUE, "learned from")]
    _legend(axes, [*keys, *([(DARK, "weighted")] if spread["weighted"] else [])])
    shares = {kind: _shares(spread[kind]) for kind in ("before", "after", "weighted")}
    most = max(share for kind in shares for share in shares[kind].values())
    names = list(spread["before"])
    height = min(44.0, (HEIGHTS[1] - 24) / min(len(names), 10))
    for at, name in enumerate(names[:10]):
        y = (at + 0.5) * height + 2
        counts = f"{spread['before'][name]:,} → {spread['after'][name]:,}"
        write(axes, 0, y - 7, cut(name.removeprefix("cluster: "), 27))
        write(axes, 0, y + 8, counts, color=GRAY, size=8)
        _pair(axes, y, height, {kind: shares[kind].get(name, 0) / most for kind in shares})
        write(axes, PANEL - 74, y, f"{shares['before'][name]:.1%}", color=GRAY, ha="right")
        write(axes, PANEL - 60, y, "→", color=GRAY, ha="center")
        write(axes, PANEL, y, f"{shares['after'][name]:.1%}", weight="bold", ha="right")
    if len(names) > 10:
        write(axes, 0, 10 * height + 14, f"and {len(names) - 10:,} more groups", color=GRAY)


def _pair(axes: "Axes", y: float, height: float, parts: dict[str, float]) -> None:
    """Draws one group's bars, each a part of the longest, and its mark."""
    left, width, thick = 196, 190, min(0.3 * height, 11)
    bar(axes, (left, y - thick / 2 - 0.5), (width * parts["before"], thick), PALE)
    bar(axes, (left, y + thick / 2 + 0.5), (width * parts["after"], thick), BLUE)
    if parts["weighted"]:
        x = left + width * parts["weighted"]
        bar(axes, (x - 1, y), (2.5, 2 * thick + 7), DARK)


def _lengths(figure: "Figure", lengths: dict[str, dict[str, Any]]) -> None:
    """Two histograms, one over the other: all that was asked or answered, and what is learned."""
    axes = _panel(figure, 1, 1, "Lengths")
    _legend(axes, [(PALE, "all"), (BLUE, "learned from")])
    for at, (name, found) in enumerate(lengths.items()):
        top = at * 188
        write(axes, 0, top + 12, f"{name.capitalize()}, in {found['unit']}", weight="bold")
        if not found["before"]["num"]:
            write(axes, 0, top + 44, f"No {name} of known length.", color=GRAY)
            continue
        write(axes, PANEL, top + 12, _described(found["before"]), color=GRAY, ha="right")
        if found["after"]["num"]:
            write(axes, PANEL, top + 30, _described(found["after"]), color=BLUE, ha="right")
        counts = found["before"]["counts"], found["after"]["counts"]
        highest = max(map(max, counts))
        write(axes, 0, top + 34, f"up to {highest:,}", color=GRAY, size=8)
        spot = place(figure, MARGIN + PANEL + GAP, TOPS[1] + top + 44, PANEL, 104)
        _histogram(figure.add_axes(spot), found["edges"], counts)


def _histogram(plot: "Axes", edges: list[int], counts: tuple[list[int], list[int]]) -> None:
    """Draws bins equally wide, also the last, which may reach further than the others."""
    num_bins, highest = len(edges) - 1, max(map(max, counts))
    for bins, color in zip(counts, (PALE, BLUE), strict=True):
        plot.bar([at + 0.5 for at in range(num_bins)], bins, width=0.88, color=color, linewidth=0)
    plot.set_xlim(0, max(num_bins, 8))
    plot.set_ylim(0, highest)
    for side in ("right", "left"):
        plot.spines[side].set_visible(False)
    plot.spines[["top", "bottom"]].set_color(LINE)
    plot.set_yticks([])
    # A bin of one length is named in its middle, a wider one by its edges, the open one at its end.
    width = edges[1] - edges[0]
    is_open = edges[-1] - edges[-2] > width
    last = num_bins - (4 if is_open else 1 if width == 1 else 0)
    ticks = [float(at) for at in range(0, last + 1, max(1, -(-num_bins // 8)))]
    labels = [f"{edges[int(at)]:,}" for at in ticks]
    if is_open:
        ticks, labels = [*ticks, num_bins], [*labels, f"≥ {edges[-2]:,}"]
    plot.set_xticks([at + 0.5 for at in ticks] if width == 1 and not is_open else ticks, labels)
    plot.tick_params(axis="x", length=3, color=LINE, labelcolor=GRAY, labelsize=9, pad=4)
    if ticks[-1] == num_bins:
        plot.get_xticklabels()[-1].set_horizontalalignment("right")


def _described(stats: dict[str, Any]) -> str:
    names = ("min", "median", "p95", "max")
    return " · ".join(f"{name} {stats[name]:,.0f}" for name in names)


def _shares(counts: dict[str, float]) -> dict[str, float]:
    total = sum(counts.values()) or 1
    return {name: count / total for name, count in counts.items()}


def _panel(figure: "Figure", column: int, row: int, title: str) -> "Axes":
    """Returns one of the four panels, its title written above it."""
    left, top = MARGIN + column * (PANEL + GAP), TOPS[row]
    axes = area(figure, left, top, PANEL, HEIGHTS[row])
    write(axes, 0, -20, title, size=12, weight="bold")
    axes.plot([0, PANEL], [-6, -6], color=LINE, linewidth=0.8, clip_on=False)
    return axes


def _legend(axes: "Axes", keys: list[tuple[str, str]]) -> None:
    """Writes what the colors mean, at the right of the panel's title."""
    x = float(PANEL)
    for color, name in reversed(keys):
        x -= sum(4.4 if letter in "fijlrt " else 6.4 for letter in name)
        write(axes, x, -20, name, color=GRAY, size=9)
        bar(axes, (x - 15, -20), (10, 10), color)
        x -= 34


def _nothing(axes: "Axes", text: str, height: float) -> None:
    write(axes, PANEL / 2, height / 2, text, color=GRAY, size=11, ha="center")
