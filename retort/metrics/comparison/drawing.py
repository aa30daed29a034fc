"""The one place of matplotlib: SVG pictures that are the same bytes for the same numbers.

Text is text, not outlines: it can be searched and read aloud, and a reader's own font shows it.
Widths are measured in a wider font than most readers have, so that nothing overlaps.
"""

import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

    Axes = matplotlib.axes.Axes
    Figure = matplotlib.figure.Figure

PAPER, DARK, GRAY, LINE, PALE = "#ffffff", "#1b1f24", "#5b6470", "#d5dae1", "#b4bec9"
# Colours that colour-blind readers can tell apart, after Okabe and Ito.
BLUE, SKY, RED, OCHRE = "#0072b2", "#7fb9dc", "#d55e00", "#e0a526"
GREEN, PURPLE = "#009e73", "#cc79a7"
# The names under which a page may give each colour another value, as in the dark.
VARIABLES = {
    **{PAPER: "paper", DARK: "ink", GRAY: "gray", LINE: "line", PALE: "pale", BLUE: "blue"},
    **{SKY: "sky", RED: "red", OCHRE: "ochre", GREEN: "green", PURPLE: "purple"},
}
FONTS = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
TEXT, SMALL = 9.5, 8.5  # points
# In a legend, in sizes of its letters: a letter, and a mark with the space around it.
WIDTH_OF_CHARACTER, MARK = 0.62, 3.0
LOOK: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "retort",
    "font.family": "DejaVu Sans",
    "font.size": TEXT,
    "text.parse_math": False,
    "text.color": DARK,
    "figure.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "axes.facecolor": "none",
    "axes.edgecolor": LINE,
    "axes.labelcolor": GRAY,
    "axes.labelsize": SMALL,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.labelcolor": GRAY,
    **{f"axes.spines.{side}": False for side in ("top", "right")},
    **{f"{axis}tick.labelsize": SMALL for axis in "xy"},
    **{f"{axis}tick.color": LINE for axis in "xy"},
    **{f"{axis}tick.labelcolor": GRAY for axis in "xy"},
}
IDS = re.compile(r'(\bid="|href="#|url\(#)')
# What a file of its own has and an element of a page has not.
OWN = re.compile(r"<metadata>.*?</metadata>|<title>.*?</title>|<style .*?</style>|<!--.*?-->", re.S)
STYLE, FONT = re.compile(r'style="[^"]*"'), re.compile(r"font-family: [^;\"]*;? ?")


@contextmanager
def figure(width: int, height: int) -> Iterator["Figure"]:
    """Gives an empty figure of a size in pixels; draw and save it within."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(LOOK), warnings.catch_warnings():
        # A letter that the measuring font lacks is drawn in the reader's.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield Figure(figsize=(width / 96, height / 96))


def svg(figure: "Figure", title: str) -> bytes:
    """Returns a figure as a file of its own."""
    data = io.BytesIO()
    figure.savefig(data, format="svg", metadata={"Date": None, "Title": title})
    return data.getvalue().replace(b"'DejaVu Sans'", FONTS.encode())


def element(figure: "Figure", name: str, title: str) -> str:
    """Returns a figure as an element of a page; see `inline`."""
    return inline(svg(figure, name), name, title)


def inline(picture: bytes, name: str, title: str) -> str:
    """Returns a picture as an element of a page: it takes the page's colours, font and any width.

    `name` keeps its ids apart from those of other pictures; `title` is what is read aloud.
    """
    text = picture.decode()
    text = OWN.sub("", text[text.index("<svg") :])
    text = IDS.sub(rf"\g<1>{name}-", text)
    text = STYLE.sub(lambda found: _of_the_page(found.group()), text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box, "matplotlib always says the size"
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box.group()} role="img" '
    return f'{head}aria-label="{escape(title)}">{text[text.index(">") + 1 :]}'


def _of_the_page(style: str) -> str:
    """Returns an element's style with the page's colours and without a font of its own."""
    for color, variable in VARIABLES.items():
        style = style.replace(color, f"var(--{variable})")
    return FONT.sub("", style)


def tick(axis: Any, show: Callable[[float], str], is_whole: bool = False) -> None:
    """Puts a few marks on an axis, each written by `show`."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        subs = (1, 2, 5) if high / low < 300 else (1,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=9))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(5, integer=is_whole))
    axis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))


def legend(figure: "Figure", axes: "Axes", most: int, **look: Any) -> None:
    """Names what is drawn above the axes, in at most so many columns and as many as have room."""
    labels = axes.get_legend_handles_labels()[1]
    if not labels:
        return
    widest = max(map(len, labels))
    room = figure.get_figwidth() * 72 / (SMALL * (WIDTH_OF_CHARACTER * widest + MARK))
    ncols = max(1, min(most, int(room)))
    figure.legend(loc="outside upper left", ncols=ncols, columnspacing=1, **look)


def name_rows(axes: "Axes", names: list[str]) -> None:
    """Names rows from the top down, in the place of an axis at the left."""
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0, labelcolor=DARK, labelsize=TEXT)
    axes.spines["left"].set_visible(False)


def beside(axes: "Axes", offset: int, row: float, text: str, **look: Any) -> None:
    """Writes at the right of an axes, ending so many points beyond its end."""
    look = {"ha": "right", "va": "center", "annotation_clip": False, **look}
    axes.annotate(text, (1, row), (offset, 0), axes.get_yaxis_transform(), "offset points", **look)


def shorten(text: str, most: int) -> str:
    """Returns a text as one line as wide as at most so many small letters, fit to stand in XML."""
    spaced = re.sub(r"\s", " ", text)
    # Control characters, halves of surrogate pairs and the like cannot stand in XML.
    letters = "".join(letter for letter in spaced if unicodedata.category(letter)[0] != "C")
    kept, width = "", 0.0
    for letter in " ".join(letters.split()):
        is_wide = unicodedata.east_asian_width(letter) in "WF"
        width += 2 if is_wide else 1.3 if letter.isupper() or letter in "mw@%" else 1
        if width > most:
            return kept[:-1].rstrip() + "…"
        kept += letter
    return kept
