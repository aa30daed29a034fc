"""The only door to matplotlib: SVG pictures that are the same bytes for the same numbers.

Text is text, not outlines: it can be searched and read aloud, and a reader's own font shows it.
Widths are measured in a wider font than most readers have, so nothing runs into anything else.
The surprise: `inline` makes a picture follow a page's light or dark colours.
"""

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

    Axes = matplotlib.axes.Axes
    Figure = matplotlib.figure.Figure

# Of Okabe and Ito where a colour says something, told apart by every eye.
DARK, GRAY, LINE, TRACK, PALE = "#1b1f24", "#5b6470", "#d5dae1", "#eef1f5", "#b4bec9"
BLUE, SKY, RED, OCHRE, GREEN, PURPLE = (
    "#0072b2",
    "#7fb9dc",
    "#d55e00",
    "#e0a526",
    "#009e73",
    "#cc79a7",
)
PAPER = "#ffffff"
# The names under which a page may give each colour another value, as in the dark.
VARIABLES = {
    DARK: "ink",
    GRAY: "gray",
    LINE: "line",
    TRACK: "track",
    PALE: "pale",
    BLUE: "blue",
    SKY: "sky",
    RED: "red",
    OCHRE: "ochre",
    GREEN: "green",
    PURPLE: "purple",
    PAPER: "paper",
}
FONTS = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
PIXELS_PER_INCH, POINTS_PER_PIXEL = 96, 0.75
PREFIXED = re.compile(r'(\bid="|href="#|url\(#)')
# What a file of its own has and an element of a page has not.
OWN = re.compile(r"<metadata>.*?</metadata>|<title>.*?</title>|<style .*?</style>|<!--.*?-->", re.S)
STYLE, FONT = re.compile(r'style="[^"]*"'), re.compile(r"font-family: [^;\"]*;? ?")


@contextmanager
def drawing(width: int, height: int) -> Iterator["Figure"]:
    """Gives an empty figure of a size in pixels; draw and save it within."""
    import matplotlib
    from matplotlib.figure import Figure

    look: Any = {"svg.fonttype": "none", "svg.hashsalt": "retort", "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(look), warnings.catch_warnings():
        # A letter that the measuring font has not is drawn by the reader's.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield Figure(figsize=(width / PIXELS_PER_INCH, height / PIXELS_PER_INCH), facecolor=PAPER)


def ticker() -> Any:
    """Returns what places and writes the marks of an axis."""
    import matplotlib.ticker

    return matplotlib.ticker


def svg(figure: "Figure", title: str) -> bytes:
    """Returns a figure as a file of its own."""
    data = io.BytesIO()
    figure.savefig(data, format="svg", metadata={"Date": None, "Title": title})
    return data.getvalue().replace(b"'DejaVu Sans'", FONTS.encode())


def inline(picture: bytes, name: str, title: str) -> str:
    """Returns a picture as an element of a page: it takes the page's colours, font and any width.

    `name` keeps its ids apart from those of other pictures; `title` is what is read aloud.
    """
    text = picture.decode()
    text = OWN.sub("", text[text.index("<svg") :])
    text = PREFIXED.sub(rf"\g<1>{name}-", text)
    text = STYLE.sub(lambda found: _of_the_page(found.group()), text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box, "matplotlib always says the size"
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box.group()} role="img" '
    head += f'aria-label="{escape(title)}">'
    return head + text[text.index(">") + 1 :]


def _of_the_page(style: str) -> str:
    """Returns an element's style with the page's colours and without a font of its own."""
    for color, variable in VARIABLES.items():
        style = style.replace(color, f"var(--{variable})")
    return FONT.sub("", style)


def area(figure: "Figure", left: float, top: float, width: float, height: float) -> "Axes":
    """Returns a part of a figure whose unit is a pixel, from its upper left corner."""
    axes: Axes = figure.add_axes(place(figure, left, top, width, height))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    return axes


def place(
    figure: "Figure", left: float, top: float, width: float, height: float
) -> tuple[float, float, float, float]:
    """Returns a place in pixels as matplotlib wants it: in parts of the figure, from below."""
    all_width, all_height = (float(side) * PIXELS_PER_INCH for side in figure.get_size_inches())
    return left / all_width, 1 - (top + height) / all_height, width / all_width, height / all_height


def bar(axes: "Axes", start: tuple[float, float], size: tuple[float, float], color: str) -> None:
    """Draws a bar of a width and height from the middle of its left side on."""
    (x, y), (width, height) = start, size
    axes.barh(y, width, height, left=x, color=color, linewidth=0, clip_on=False)


def write(axes: "Axes", x: float, y: float, text: str, **look: Any) -> None:
    """Writes a line of plain text, its middle at y."""
    look = {"color": DARK, "size": 9.5, "va": "center_baseline", **look}
    axes.text(x, y, text, parse_math=False, **look)


def cut(text: str, most: int) -> str:
    """Returns a text as one line as wide as at most so many small letters."""
    spaced = re.sub(r"\s", " ", text)
    # Control characters, halves of pairs and the like cannot stand in XML.
    letters = "".join(letter for letter in spaced if unicodedata.category(letter)[0] != "C")
    kept, width = "", 0.0
    for letter in " ".join(letters.split()):
        is_full = unicodedata.east_asian_width(letter) in "WF"
        width += 2 if is_full else 1.3 if letter.isupper() or letter in "mw@%" else 1
        if width > most:
            return kept[:-1].rstrip() + "…"
        kept += letter
    return kept
