"""Whether today's prompts are still those of the training: a two-sample test on their words.

The sketch of a prompt is the set of its words (as `prepare` normalises them; all numbers are one)
and the power of two of their number, weighted by how rare each is, at length one. The statistic is
the maximum mean discrepancy of the two samples of sketches, its null distribution that of random
divisions of both together. Of prompts from one source at most a share `ALARM` of windows is called
different, whatever the prompts are. What the training holds already is left out of the window where
training holds each prompt once: how often it is asked is known of the window alone.
Source: Gretton et al., "A Kernel Two-Sample Test" (2012), with a linear kernel; Phipson & Smyth,
"Permutation P-values Should Never Be Zero" (2010).
"""

# T training prompts, W window's prompts, N both, D words, B divisions
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from retort.data.duplicates import Texts, find_duplicates, normal_words
from retort.records import Example, JsonObject, chat_text
from retort.spec.prepare import Deduplicate

ALARM = 0.001
DIVISIONS, BATCH = 1999, 250
# The most prompts of either side: with more, the least difference would be an alarm. In so many of
# the training's the window's are looked up.
TRAINING_PROMPTS, WINDOW_PROMPTS, KNOWN_PROMPTS = 4000, 1000, 50_000
# So many prompts of either side, and so many of the window's that training does not hold.
LEAST_PROMPTS, LEAST_UNKNOWN = 30, 5
# Among so many of the training's a prompt's nearest is looked for.
COMPARED_PROMPTS = 1000
# A prompt is new where its nearest of the training is farther than for all but such a share of
# the training's own.
RARE = 0.05
MOST_WORDS, MOST_PROMPTS = 8, 5
MAX_READ = 20_000  # characters of a prompt
ROUNDING = 1e-9  # of sums in another order: equal divisions are equal
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NewWord:
    """A word that is more frequent now; shares of the prompts that hold it."""

    word: str
    window: float
    training: float


@dataclass(frozen=True)
class Drift:
    """The outcome of the test.

    `distance` is the discrepancy over its mean by chance, `new_share` about which share of the
    window is unlike any of the training, `new_prompts` the ids of prompts that are. `num_known` of
    the window's prompts are in the training.
    """

    p_value: float
    distance: float
    new_share: float
    num_window: int
    num_known: int
    num_training: int
    words: tuple[NewWord, ...]
    new_prompts: tuple[str, ...]

    @property
    def is_alarm(self) -> bool:
        """Whether the prompts are not those of the training any more."""
        return self.p_value <= ALARM

    def as_json(self) -> JsonObject:
        """Returns the drift as JSON."""
        return {**asdict(self), "alarm": self.is_alarm, "alarm_at": ALARM}

    def numbers(self) -> dict[str, float]:
        """Returns the drift as metrics."""
        return {
            "drift.p_value": self.p_value,
            "drift.distance": self.distance,
            "drift.new_share": self.new_share,
            "drift.alarm": float(self.is_alarm),
        }


def drift_of(
    training: Sequence[Example], window: Sequence[Example], knobs: Deduplicate, seed: int
) -> Drift:
    """Returns whether the prompts of a window are those of the training.

    `training` is in random order, and `knobs` say which copies it left out. Raises ValueError where
    a side has too few prompts.
    """
    sides = [[_asked(example) for example in examples] for examples in (training, window)]
    for name, side in zip(("training", "window"), sides, strict=True):
        if len(side) < LEAST_PROMPTS:
            raise ValueError(f"the {name} has {len(side)} prompts, and drift needs {LEAST_PROMPTS}")
    known = _known(sides[0], sides[1], knobs)
    unknown = [at for at in range(len(window)) if at not in known]
    texts = [*sides[0][:TRAINING_PROMPTS], *(sides[1][at] for at in unknown)]
    num_training = len(texts) - len(unknown)
    counts = {"num_window": len(window), "num_known": len(known), "num_training": num_training}
    if len(unknown) < LEAST_UNKNOWN:
        return Drift(1.0, 1.0, 0.0, **counts, words=(), new_prompts=())
    rows_ND, words = _matrix([_sketch(text) for text in texts])
    chance_B, own = _discrepancies(rows_ND, num_training, seed)
    share, nearest_W = _new(rows_ND, num_training)
    newest, usual = np.argsort(nearest_W, kind="stable")[:MOST_PROMPTS], float(chance_B.mean())
    return Drift(
        p_value=float((1 + (chance_B >= own * (1 - ROUNDING)).sum()) / (1 + len(chance_B))),
        distance=own / usual if usual else 1.0,
        new_share=share * len(unknown) / len(window),
        **counts,
        words=_words(rows_ND, words, num_training),
        new_prompts=tuple(window[unknown[at]].id for at in newest),
    )


def _asked(example: Example) -> str:
    """Returns what a request's user says."""
    turns = (turn for turn in example.messages if turn["role"] == "user")
    return chat_text(turns)[:MAX_READ]


def _known(training: list[str], window: list[str], knobs: Deduplicate) -> set[int]:
    """Returns the prompts of the window that are copies of the training's."""
    texts, known = Texts(), set[int]()
    for text in (*training, *window):
        texts.add(text)
    for pair in find_duplicates(texts, knobs):
        if pair.other < len(training) or pair.other in known:
            known.add(pair.index)
    return {index - len(training) for index in known if index >= len(training)}


# Most pieces of a text between spaces occur often.
_words_of = lru_cache(1 << 16)(normal_words)


def _sketch(text: str) -> set[str]:
    words = [word for piece in text.split() for word in _words_of(piece)]
    kinds = {"0" if word[:1].isdigit() else word for word in words}
    return kinds | {f" {len(words).bit_length()}"}


def _matrix(sketches: list[set[str]]) -> tuple[Any, list[str]]:
    """Returns the sketches as rows (N, D) of length one, words that one prompt alone holds left
    out, and the words."""
    from scipy import sparse

    places: dict[str, int] = {}
    found = [[places.setdefault(word, len(places)) for word in sorted(s)] for s in sketches]
    ends = np.cumsum([0, *map(len, found)])
    columns = np.concatenate([np.asarray(row, dtype=np.int32) for row in found])
    counts_D = np.bincount(columns, minlength=len(places))
    weights_D = np.log(len(sketches) / counts_D) * (counts_D > 1)
    rows_ND = sparse.csr_array((weights_D[columns], columns, ends), (len(found), len(places)))
    lengths_N = np.sqrt((rows_ND * rows_ND).sum(axis=1))
    scale_N = 1 / np.where(lengths_N > 0, lengths_N, 1)
    return (sparse.diags_array(scale_N) @ rows_ND).tocsr(), list(places)


def _discrepancies(rows_ND: Any, num_training: int, seed: int) -> tuple[F64, float]:
    """Returns the squared distance of the means of both sides in random divisions, and in the true
    one. It follows from the sum of the window's rows, as that of all is known."""
    from scipy import sparse

    number, total_D = rows_ND.shape[0], rows_ND.sum(axis=0)
    num_window, random = number - num_training, np.random.default_rng(seed)
    own = np.arange(num_training, number)
    drawn = [own, *(random.permutation(number)[:num_window] for _ in range(DIVISIONS))]
    found, weight = list[F64](), 1 / num_window + 1 / num_training
    shares_N = rows_ND @ total_D
    for start in range(0, len(drawn), BATCH):
        some = np.stack(drawn[start : start + BATCH])
        ends = np.arange(len(some) + 1) * num_window
        chosen_BN = sparse.csr_array((np.ones(some.size), some.ravel(), ends), (len(some), number))
        sums_BD = chosen_BN @ rows_ND
        sums_BD.data **= 2
        squares_B = sums_BD.sum(axis=1)
        cross_B = shares_N[some].sum(axis=1) / num_training
        found.append(weight * (weight * squares_B - 2 * cross_B))
    every = np.concatenate(found) + (total_D @ total_D) / num_training**2
    return every[1:], float(every[0])


def _new(rows_ND: Any, num_training: int) -> tuple[float, F64]:
    """Returns about which share of the window is new, and how near each prompt's nearest of the
    training is (W,), as a cosine."""
    training = rows_ND[: min(num_training, COMPARED_PROMPTS)]
    own_T, nearest_W = (
        _nearest(side, training, side is training) for side in (training, rows_ND[num_training:])
    )
    least = np.quantile(own_T, RARE)
    usual, now = (own_T < least).mean(), (nearest_W < least).mean()
    return float(max(0.0, (now - usual) / (1 - usual))), nearest_W


def _nearest(rows_MD: Any, others_TD: Any, are_same: bool) -> F64:
    """Returns the largest cosine of each row with any other (M,)."""
    found_MT = (rows_MD @ others_TD.T).tocsr()
    nearest_M, lengths_M = np.zeros(found_MT.shape[0]), np.diff(found_MT.indptr)
    if are_same:
        found_MT.data[found_MT.indices == np.repeat(np.arange(len(lengths_M)), lengths_M)] = 0
    some = np.flatnonzero(lengths_M)
    if len(some):
        nearest_M[some] = np.maximum.reduceat(found_MT.data, found_MT.indptr[some])
    return nearest_M


def _words(rows_ND: Any, words: list[str], num_training: int) -> tuple[NewWord, ...]:
    """Returns the words that are more frequent in the window than chance explains, the most telling
    first."""
    holds = rows_ND > 0
    training_D = np.asarray(holds[:num_training].mean(axis=0)).ravel()
    window_D = np.asarray(holds[num_training:].mean(axis=0)).ravel()
    num_window = rows_ND.shape[0] - num_training
    share_D = np.asarray(holds.mean(axis=0)).ravel()
    error_D = np.sqrt(share_D * (1 - share_D) * (1 / num_window + 1 / num_training))
    score_D = (window_D - training_D) / np.where(error_D > 0, error_D, np.inf)
    best = [at for at in np.argsort(-score_D, kind="stable")[:MOST_WORDS] if score_D[at] > 3]
    return tuple(
        NewWord(words[at], float(window_D[at]), float(training_D[at]))
        for at in best
        if not words[at].startswith(" ")
    )
