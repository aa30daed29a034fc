"""What vLLM's server lists of a text that it scored, as a signal.

The surprise: entry t of its list describes token t itself, not the next one; the first is empty.
"""

# T supervised tokens of an item, W ids that are listed for each, K those that are kept
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retort.data.encoding import EncodedRow
from retort.errors import SpecError
from retort.store.signals import Signal, captured

# Share of the endpoint's words for its ids that may differ from the student's: decoders disagree
# on halves of a character, another vocabulary differs in nearly all.
MOST_DIFFERENT = 0.02


@dataclass(frozen=True)
class Lists:
    """What an endpoint lists at each label: the W most probable ids, falling, and the label's own
    log-probability."""

    ids_TW: npt.NDArray[np.int64]
    logprobs_TW: npt.NDArray[np.float64]
    own_T: npt.NDArray[np.float64]


def listed(entries: list[Any], row: EncodedRow, width: int) -> Lists:
    """Returns what vLLM's list for the row's ids and its last label says of the labels.

    Entry t describes token t, so that of the label at t is entry t + 1. Each holds the best ids
    and the token's own, which is left out where it is not among the best. Raises `ValueError` or
    `LookupError` where the list is shorter, or not of these ids.
    """
    labels, found, own = row.labels[row.first :], [], []
    for label, entry in zip(labels, entries[row.first + 1 :], strict=True):
        name = str(label)
        own.append(entry[name]["logprob"])  # always listed: so it is seen that the entry is its own
        pairs = sorted((-value["logprob"], key == name, int(key)) for key, value in entry.items())
        if len(pairs) < width:
            raise ValueError(f"{len(pairs)} of {width} ids are listed")
        found.append(pairs[:width])
    found_TW3 = np.array(found, dtype=np.float64)
    return Lists(found_TW3[:, :, 2].astype(np.int64), -found_TW3[:, :, 0], np.array(own))


def kept(lists: Lists, labels: list[int], k: int, vocabulary: int) -> Signal:
    """Returns the signal of the k best ids of the vocabulary; those past it are padding.

    Of the padding, what is more probable than the k-th id is divided out, as if the teacher's
    logits had been cut to the vocabulary; the rest is in the tail.
    """
    is_padding_TW = lists.ids_TW >= vocabulary
    order_TK = np.argsort(is_padding_TW, axis=1, kind="stable")[:, :k]
    is_before_TW = np.arange(is_padding_TW.shape[1]) < order_TK[:, -1:]
    mass_TW = np.where(is_padding_TW & is_before_TW, np.exp(lists.logprobs_TW), 0.0)
    left_T = np.log1p(-mass_TW.sum(axis=1).clip(max=1 - 1e-12))
    logprobs_TK = np.take_along_axis(lists.logprobs_TW, order_TK, axis=1) - left_T[:, None]
    return captured(
        np.take_along_axis(lists.ids_TW, order_TK, axis=1).astype(np.int32),
        logprobs_TK.astype(np.float32),
        np.array(labels, dtype=np.int32),
        (lists.own_T - left_T).astype(np.float32),
    )


def check_words(body: dict[str, Any], tokenizer: Any, shown: str) -> None:
    """Raises `SpecError` unless the endpoint's words for ids are the student's, or can't be told.

    White space around them is not compared: decoders differ in it.
    """
    words = {
        int(key): str(value.get("decoded_token") or "").strip()
        for entry in body["choices"][0]["prompt_logprobs"][1:]
        for key, value in entry.items()
    }
    pairs = [(word, tokenizer.decode([key]).strip()) for key, word in words.items()]
    pairs = [pair for pair in pairs if all(pair) and "\ufffd" not in "".join(pair)]
    different = [pair for pair in pairs if pair[0] != pair[1]]
    way_out = (
        "serve the teacher with vLLM, whose /tokenize and decoded_token tell; or set train.losses: "
        "[{name: cross_entropy}]"
    )
    if not pairs:
        raise SpecError(
            f"generate.endpoint {shown} has no /tokenize and tells no token's text, so it cannot "
            f"be known whether its tokens are the student's; {way_out}"
        )
    if len(different) > MOST_DIFFERENT * len(pairs):
        (theirs, own), number = different[0], len(different)
        raise SpecError(
            f"generate.endpoint {shown}: {number} of {len(pairs)} ids stand for other text than "
            f"the student's (the first: {theirs!r} against {own!r}), so its distribution does not "
            f"speak of the student's tokens; {way_out}"
        )
