"""How the summed statistics of each metric become its value, with its bounds and its format.

The value of a metric that is not listed here, such as a user's own, is the mean of its scores.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

# One row an example, or a resample: the sums of a metric's statistics.
Array = npt.NDArray[np.float64]
Form = Literal["share", "number"]


def ratio_of_sums(sums: Array) -> Array:
    """Returns the first sum divided by the second: a mean, if the second counts the examples."""
    nan = np.full(len(sums), np.nan)
    ratios: Array = np.divide(sums[:, 0], sums[:, 1], out=nan, where=sums[:, 1] != 0)
    return ratios


def perplexity(sums: Array) -> Array:
    """Returns e to the mean negative log-likelihood of a token, from [summed nats, tokens]."""
    perplexities: Array = np.exp(ratio_of_sums(sums))
    return perplexities


def macro_f1(sums: Array) -> Array:
    """Returns the mean F1 of the labels, from [right, predicted, expected] counts of each label.

    A label that no example of a resample expects is left out of its mean.
    """
    right, predicted, expected = (sums[:, place::3] for place in range(3))
    is_expected = expected > 0
    f1 = np.divide(2 * right, predicted + expected, out=np.zeros_like(right), where=is_expected)
    means: Array = f1.sum(axis=1) / is_expected.sum(axis=1)
    return means


def bleu(sums: Array) -> Array:
    """Returns sacrebleu's corpus BLEU, from 0 to 100, from summed counts."""
    from sacrebleu.metrics.bleu import BLEU

    return np.array([BLEU.compute_bleu(*_counts(row), smooth_method="exp").score for row in sums])


def _counts(row: Array) -> tuple[list[int], list[int], int, int]:
    """Returns the right and all n-grams by order, and the words of answers and references."""
    num_words, num_wanted, *counts = (round(count) for count in row)
    return counts[:4], counts[4:], num_words, num_wanted


@dataclass(frozen=True)
class Kind:
    """The properties of a metric: how its sums become its value, and how the value is shown.

    `width` is the number of statistics of an example, `bounds` the value's minimum and maximum.
    """

    value: Callable[[Array], Array] = ratio_of_sums
    bounds: tuple[float, float] | None = None
    form: Form = "number"
    lower_is_better: bool = False
    width: int = 2


SHARE = Kind(bounds=(0.0, 1.0), form="share")
KINDS = {
    "accuracy": SHARE,
    "macro_f1": Kind(macro_f1, (0.0, 1.0), "share"),
    "exact_match": SHARE,
    "token_f1": SHARE,
    "rouge_1": SHARE,
    "rouge_2": SHARE,
    "rouge_l": SHARE,
    "bleu": Kind(bleu, (0.0, 100.0), width=10),
    "length_ratio": Kind(),
    "entity_coverage": SHARE,
    "agreement": SHARE,
    "judge": Kind(bounds=(1.0, 5.0)),
    "perplexity": Kind(perplexity, lower_is_better=True),
    "kl_to_teacher": Kind(lower_is_better=True),
    "kl_to_student": Kind(lower_is_better=True),
}
OWN = Kind()
# How the names begin of graders whose scores are shares.
GRADED = "grader."


def kind(metric: str) -> Kind:
    """Returns the properties of a metric; a user's own metric and a grader's are means."""
    return KINDS.get(metric, SHARE if metric.startswith(GRADED) else OWN)


def lower_is_better(metric: str) -> bool:
    """Whether lower values are better: perplexity, and the divergence from the teacher."""
    return kind(metric).lower_is_better


def form(metric: str) -> Form:
    """Returns how a value is shown: a share from 0 to 1 as a percentage, a number unchanged.

    BLEU is a number from 0 to 100, as in sacrebleu.
    """
    return kind(metric).form


def matrix(metric: str, vectors: dict[str, list[float]]) -> Array:
    """Returns the statistics of examples as they are summed, one row for each example.

    Raises `ValueError` without examples, for vectors of a wrong length, and for infinite numbers.
    """
    widths = sorted({len(vector) for vector in vectors.values()})
    if widths != [kind(metric).width]:
        raise ValueError(
            f"{metric}: {len(vectors)} examples with {widths or 'no'} statistics each; "
            f"give at least one example, and {kind(metric).width} statistics for each"
        )
    rows = np.array([*vectors.values()], dtype=np.float64)
    if not np.isfinite(rows).all():
        bad = next(id for id, row in zip(vectors, rows, strict=True) if not np.isfinite(row).all())
        raise ValueError(f"{metric}: the statistics of example '{bad}' are not finite numbers")
    return _label_counts(rows) if metric == "macro_f1" else rows


def value(metric: str, vector: list[float]) -> float:
    """Returns the value of one example's statistics. Raises `ValueError` as `value_of`."""
    return value_of(metric, matrix(metric, {"": vector})[0])


def value_of(metric: str, sums: Array) -> float:
    """Returns the value of summed statistics. Raises `ValueError` where it would divide by 0."""
    result = float(kind(metric).value(sums[None])[0])
    if not math.isfinite(result):
        raise ValueError(f"{metric}: the sums {sums.tolist()} have no value")
    return result


def _label_counts(pairs: Array) -> Array:
    """Returns [right, predicted, expected] for each label, from [expected, predicted] labels.

    A predicted label that is never expected, or none (-1), only counts as a miss of the expected.
    """
    expected, predicted = pairs.astype(np.int64).T
    number = int(expected.max()) + 1
    labels = np.arange(number)
    is_expected, is_predicted = (column[:, None] == labels for column in (expected, predicted))
    counts = np.stack([is_expected & is_predicted, is_predicted, is_expected], axis=2)
    return counts.reshape(len(pairs), 3 * number).astype(np.float64)
