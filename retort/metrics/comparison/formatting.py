"""How numbers are written: shares in percent, their differences in points, None as unknown."""

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from retort.metrics import form
from retort.metrics.comparison.content import Estimate

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
def percent_interval(share: Estimate) -> str:
    """Returns the ends of the interval of a share, such as retention."""
    return f"{share.low:.1%} to {share.high:.1%}"


@or_unknown
def number(value: float) -> str:
    """Returns a number with three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


@or_unknown
def measured(value: float) -> str:
    """Returns what the gate measured, with four significant digits."""
    return f"{value:,.4g}"


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
    return f"{value:,.0f}"


@or_unknown
def count_bytes(count: float) -> str:
    """Returns a number of bytes in the largest unit below it."""
    if count < 1000:
        return f"{count:,.0f} B"
    for name in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{number(count)} {name}"
    return f"{number(count / 1000)} GB"


@or_unknown
def duration(seconds: float) -> str:
    """Returns a time, a short one in milliseconds."""
    return f"{number(seconds * 1000)} ms" if seconds < 1 else f"{number(seconds)} s"


@or_unknown
def times(ratio: float) -> str:
    """Returns a ratio, such as 1.42 or 12."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"


@or_unknown
def score(value: float, metric: str) -> str:
    """Returns a metric's value, such as 95.8% or 12.31."""
    return percent(value) if is_share(metric) else number(value)


@or_unknown
def interval(found: Estimate, metric: str) -> str:
    """Returns the ends of a metric's interval."""
    return f"{score(found.low, metric)} to {score(found.high, metric)}"


@or_unknown
def estimate(found: Estimate, metric: str) -> str:
    """Returns a metric's value without its interval."""
    return score(found.value, metric)


@or_unknown
def estimate_with_interval(found: Estimate, metric: str) -> str:
    """Returns a metric's value with its interval in brackets."""
    return f"{score(found.value, metric)} ({interval(found, metric)})"


def size(value: float, metric: str) -> str:
    """Returns how large a difference is: in points where the metric is a share."""
    return f"{abs(value) * 100:.1f}" if is_share(metric) else number(abs(value))


@or_unknown
def gap(value: float, metric: str) -> str:
    """Returns a difference with its sign, in points where the metric is a share."""
    return f"{'-' if value < 0 else '+'}{size(value, metric)}"


@or_unknown
def difference(found: Estimate, metric: str) -> str:
    """Returns a difference without its interval."""
    return gap(found.value, metric)


@or_unknown
def difference_with_interval(found: Estimate, metric: str) -> str:
    """Returns a difference with its interval in brackets."""
    return f"{difference(found, metric)} ({gaps(found, metric)})"


@or_unknown
def gaps(found: Estimate, metric: str) -> str:
    """Returns the ends of a difference's interval."""
    return f"{gap(found.low, metric)} to {gap(found.high, metric)}"


def p_value(value: float | None) -> str:
    """Returns a p-value with three digits; nothing for None, where there is no test."""
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
