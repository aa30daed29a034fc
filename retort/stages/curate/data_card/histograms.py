"""Histograms of the lengths of prompts and answers, before curation and after it.

All bins are equally wide but the last, which reaches to the longest: one text of a hundred thousand
tokens would else leave all others in the first bin.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from retort.stages.curate.data_card.card import LengthCounts, LengthHistogram
from retort.stages.curate.data_card.counts import Responses

Numbers = npt.NDArray[Any]
MOST_BINS, IN_EQUAL_BINS = 30, 99


def lengths(responses: Responses) -> dict[str, LengthHistogram]:
    """Returns the lengths of `prompts` and `answers`; those learned from as the student reads them.

    Texts of length 0 are left out.
    """
    learned = np.asarray(responses.learned_T) > 0
    prompts, answers = np.asarray(responses.prompts_T), np.asarray(responses.answers_T)
    target_lengths = np.asarray(responses.learned_lengths_T)
    return {
        "prompts": _histograms(responses.prompt_unit, prompts, prompts[learned]),
        "answers": _histograms(responses.answer_unit, answers, target_lengths[learned]),
    }


def _histograms(unit: str, before: Numbers, after: Numbers) -> LengthHistogram:
    before, after = before[before > 0], after[after > 0]
    edges = _edges(np.concatenate([before, after]))
    return LengthHistogram(unit, edges.tolist(), _counts(before, edges), _counts(after, edges))


def _edges(values: Numbers) -> Numbers:
    """Returns the edges of at most 30 bins, whole numbers."""
    if not len(values):
        return np.zeros(0, dtype=int)
    least, longest = int(values.min()), int(values.max())
    most = int(np.percentile(values, IN_EQUAL_BINS, method="lower"))
    # A tail that is short enough is shown as it is.
    most = longest if longest - least <= 1.5 * (most - least) else most
    width = _round((most - least + 1) / (MOST_BINS - 2))
    edges = np.arange(least // width * width, most + width + 1, width)
    return edges if edges[-1] > longest else np.append(edges, longest + 1)


def _round(least: float) -> int:
    """Returns the smallest round number that is not smaller: 1, 2, 5, 10, 20, 25, 50 and so on."""
    tens = 10 ** max(0, math.floor(math.log10(max(least, 1))))
    return next(
        int(part * tens)
        for part in (1.0, 2.0, 2.5, 5.0, 10.0)
        if part * tens >= least and (part * tens).is_integer()
    )


def _counts(values: Numbers, edges: Numbers) -> LengthCounts:
    if not len(values):
        return LengthCounts(0, None, None, None, None, [0] * max(len(edges) - 1, 0))
    median, p95 = np.percentile(values, [50, 95])
    return LengthCounts(
        num=len(values),
        min=int(values.min()),
        median=float(median),
        p95=float(p95),
        max=int(values.max()),
        counts=np.histogram(values, edges)[0].tolist(),
    )
