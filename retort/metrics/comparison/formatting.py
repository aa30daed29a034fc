"""How numbers are written: shares in percent, their differences in points, unknown as unknown."""

from collections.abc import Callable
from typing import Any

from retort.metrics import form

Show = Callable[[Any], str]


def is_share(metric: str) -> bool:
    """Whether a metric is a share of what is right, which is written in percent."""
    return form(metric) == "share"


def score(value: float | None, metric: str) -> str:
    """Returns a metric's value, such as 95.8% or 12.31."""
    if value is None:
        return "unknown"
    return f"{value:.1%}" if is_share(metric) else number(value)


def interval(found: dict[str, Any] | None, metric: str) -> str:
    """Returns the ends of a metric's interval."""
    if found is None:
        return "unknown"
    return f"{score(found['low'], metric)} to {score(found['high'], metric)}"


def size(value: float, metric: str) -> str:
    """Returns how large a difference is: in points where the metric is a share."""
    return f"{abs(value) * 100:.1f}" if is_share(metric) else number(abs(value))


def gap(value: float, metric: str) -> str:
    """Returns a difference with its sign, in points where the metric is a share."""
    return f"{'-' if value < 0 else '+'}{size(value, metric)}"


def gaps(found: dict[str, Any], metric: str) -> str:
    """Returns the ends of a difference's interval."""
    return f"{gap(found['low'], metric)} to {gap(found['high'], metric)}"


def unit(metric: str) -> str:
    """Returns the unit of a metric's differences, with a space before it, or nothing."""
    return " points" if is_share(metric) else ""


def number(value: float) -> str:
    """Returns a number with three digits that matter."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def count(value: float) -> str:
    """Returns a large count in millions or billions, a smaller one in full."""
    for name, size in (("B", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:,.0f}"


def known(value: Any, show: Show) -> str:
    """Returns what `show` makes of a value; of none, that it is unknown."""
    return "unknown" if value is None else show(value)


def count_bytes(count: float) -> str:
    """Returns a number of bytes in the largest unit below it."""
    for name in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {name}" if name == "B" else f"{number(count)} {name}"
        count /= 1000
    return f"{number(count)} GB"


def duration(seconds: float) -> str:
    """Returns a time, short ones in milliseconds."""
    return f"{number(seconds * 1000)} ms" if seconds < 1 else f"{number(seconds)} s"


def times(ratio: float) -> str:
    """Returns a ratio, such as 1.42 or 12."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"
