"""How numbers are written: shares in percent, their differences in points, None as unknown."""

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from retort.metrics import form
from retort.metrics.comparison.shapes import Estimate

Value = TypeVar("Value")
Options = ParamSpec("Options")


def or_unknown(
    show: Callable[Concatenate[Value, Options], str],
) -> Callable[Concatenate[Value | None, Options], str]:
    """Makes a function of a value write None as unknown."""

    @functools.wraps(show)
    def shown(value: Value | None, /, *args: Options.args, **options: Options.kwargs) -> str:
        return "unknown" if value is None else show(value, *args, **options)

    return shown


def is_share(metric: str) -> bool:
    """Whether a metric is a share of what is right, which is written in percent."""
    return form(metric) == "share"


def unit(metric: str) -> str:
    """Returns the unit of a metric's differences, with a space before it, or nothing."""
    return " points" if is_share(metric) else ""


@or_unknown
def percent(share: float) -> str:
    """Returns a share, such as 95.8%."""
    return f"{share:.1%}"


@or_unknown
def number(value: float, digits: int = 3) -> str:
    """Returns a number with so many significant digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.{digits}g}".rstrip(".")


@or_unknown
def whole(value: float) -> str:
    """Returns a number without decimals, such as 12,345."""
    return f"{value:,.0f}"


@or_unknown
def count(value: float) -> str:
    """Returns a large count in millions or billions, a smaller one in full."""
    for name, size in (("B", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g}{name}"
    return whole(value)


@or_unknown
def count_bytes(value: float) -> str:
    """Returns a number of bytes in the largest unit below it."""
    for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{number(value / size)} {name}"
    return f"{whole(value)} B"


@or_unknown
def duration(seconds: float) -> str:
    """Returns a time, a short one in milliseconds."""
    return f"{number(seconds * 1000)} ms" if seconds < 1 else f"{number(seconds)} s"


@or_unknown
def times(ratio: float) -> str:
    """Returns a ratio, such as 1.42 or 12."""
    return f"{ratio:.2f}" if ratio < 10 else whole(ratio)


@or_unknown
def score(value: float, metric: str) -> str:
    """Returns a metric's value, such as 95.8% or 12.31."""
    return percent(value) if is_share(metric) else number(value)


@or_unknown
def estimate(quantity: Estimate, metric: str, with_interval: bool = False) -> str:
    """Returns a metric's value, with its interval in brackets if wanted."""
    return score(quantity.value, metric) + (
        f" ({interval(quantity, metric)})" if with_interval else ""
    )


@or_unknown
def interval(quantity: Estimate, metric: str | None = None) -> str:
    """Returns the ends of a metric's interval; without a metric they are of a share."""
    ends = [
        percent(end) if metric is None else score(end, metric)
        for end in (quantity.low, quantity.high)
    ]
    return " to ".join(ends)


def size(value: float, metric: str) -> str:
    """Returns how large a difference is: in points where the metric is a share."""
    return f"{abs(value) * 100:.1f}" if is_share(metric) else number(abs(value))


@or_unknown
def gap(value: float, metric: str) -> str:
    """Returns a difference with its sign, in points where the metric is a share."""
    return f"{'-' if value < 0 else '+'}{size(value, metric)}"


@or_unknown
def gaps(quantity: Estimate, metric: str) -> str:
    """Returns the ends of a difference's interval."""
    return f"{gap(quantity.low, metric)} to {gap(quantity.high, metric)}"


@or_unknown
def difference(quantity: Estimate, metric: str, with_interval: bool = False) -> str:
    """Returns a difference, with its interval in brackets if wanted."""
    return gap(quantity.value, metric) + (f" ({gaps(quantity, metric)})" if with_interval else "")


def p_value(value: float | None) -> str:
    """Returns a p-value with three digits; nothing for None, where there is no test."""
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
