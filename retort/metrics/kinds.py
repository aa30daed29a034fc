"""What the statistics of a metric amount to: the value of their sums, its bounds, how it reads.

A metric that is named nowhere here, such as a user's own, is the mean of its scores.
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
    """Returns the first sum over the second: a mean, where the second counts the examples."""
    found: Array = np.divide(
        sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] != 0
    )
    return found


def perplexity(sums: Array) -> Array:
    """Returns e to the mean negative log-likelihood of a token, of [summed nats, tokens]."""
    found: Array = np.exp(ratio_of_sums(sums))
    return found


def macro_f1(sums: Array) -> Array:
    """Returns the mean F1 of the labels, of [right, given, expected] counts for each label.

    A label that a resample does not expect is left out of it: there is nothing to find.
    """
    right, given, expected = (sums[:, place::3] for place in range(3))
    is_there = expected > 0
    f1 = np.divide(2 * right, given + expected, out=np.zeros_like(right), where=is_there)
    found: Array = f1.sum(axis=1) / is_there.sum(axis=1)
    return found


def bleu(sums: Array) -> Array:
    """Returns sacrebleu's corpus BLEU, from 0 to 100, of the counts that it sums itself."""
    from sacrebleu.metrics.bleu import BLEU

    return np.array([BLEU.compute_bleu(*_counts(row), smooth_method="exp").score for row in sums])


def _counts(row: Array) -> tuple[list[int], list[int], int, int]:
    """Returns right and all n-grams by order, and the words of answers and references."""
    given, wanted, *counts = (round(count) for count in row)
    return counts[:4], counts[4:], given, wanted


@dataclass(frozen=True)
class Kind:
    """What is known of a metric: how its sums become its value, and how that is read.

    `width` is how many statistics an example has; `bounds` the least and the most it can be.
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
}
OWN = Kind()


def kind(metric: str) -> Kind:
    """Returns what is known of a metric; of a user's own only that it is a mean."""
    return KINDS.get(metric, OWN)


def lower_is_better(metric: str) -> bool:
    """Whether less of it is better: perplexity, and the divergence from the teacher."""
    return kind(metric).lower_is_better


def form(metric: str) -> Form:
    """Returns how a value is shown: a share from 0 to 1 as a percentage, a number as it is.

    BLEU is a number, from 0 to 100 as sacrebleu gives it.
    """
    return kind(metric).form


def matrix(metric: str, found: dict[str, list[float]]) -> Array:
    """Returns the statistics of examples as they are summed, a row each, in the given order.

    Raises `ValueError` for none, for more or fewer than the metric has, and for what is no finite
    number.
    """
    widths = sorted({len(vector) for vector in found.values()})
    if widths != [kind(metric).width]:
        raise ValueError(
            f"{metric}: {len(found)} examples with {widths or 'no'} statistics each; "
            f"give at least one example, and {kind(metric).width} statistics for each"
        )
    rows = np.array([*found.values()], dtype=np.float64)
    if not np.isfinite(rows).all():
        bad = next(key for key, row in zip(found, rows, strict=True) if not np.isfinite(row).all())
        raise ValueError(f"{metric}: the statistics of example '{bad}' are not finite numbers")
    return _label_counts(rows) if metric == "macro_f1" else rows


def value(metric: str, vector: list[float]) -> float:
    """Returns what a metric says of one example's statistics alone, as it does of their sums.

    Raises `ValueError` where it says nothing: there is nothing to divide by.
    """
    return value_of(metric, matrix(metric, {"": vector})[0])


def value_of(metric: str, sums: Array) -> float:
    """Returns the value of sums. Raises `ValueError` where they hold nothing to divide by."""
    found = float(kind(metric).value(sums[None])[0])
    if not math.isfinite(found):
        raise ValueError(f"{metric}: the sums {sums.tolist()} have no value")
    return found


def _label_counts(pairs: Array) -> Array:
    """Returns [right, given, expected] for each label, of pairs of expected and given label.

    A given label that is never expected, or none (-1), counts as a miss of the expected one alone.
    """
    expected, given = pairs.astype(np.int64).T
    number = int(expected.max()) + 1
    labels = np.arange(number)
    is_expected, is_given = (column[:, None] == labels for column in (expected, given))
    counts = np.stack([is_expected & is_given, is_given, is_expected], axis=2)
    return counts.reshape(len(pairs), 3 * number).astype(np.float64)
