"""The lists that vLLM's server gives for a text it scored, as a signal.

Note: entry t of its list describes token t itself, not the next one; the first entry is empty.
"""

# T supervised tokens of an item, W ids listed for each, K of them kept
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retort.data.encoding import EncodedRow
from retort.errors import SpecError
from retort.records import JsonObject
from retort.store.signals import Signal, captured

# Share of the tokens whose text may differ from the student's: decoders disagree on parts of a
# character, while another vocabulary differs in nearly all.
MOST_DIFFERENT = 0.02


@dataclass(frozen=True)
class LabelLists:
    """What an endpoint lists at each label: the W most probable ids, falling, and the label's own
    log-probability."""

    ids_TW: npt.NDArray[np.int64]
    logprobs_TW: npt.NDArray[np.float64]
    own_T: npt.NDArray[np.float64]


def read_lists(entries: list[Any], row: EncodedRow, width: int) -> LabelLists:
    """Returns the lists at a row's labels, from vLLM's list for its ids and its last label.

    The label at t is described by entry t + 1. An entry holds the most probable ids and the token's
    own, which is left out here unless it is among them. Raises `ValueError` or `LookupError` if the
    list is shorter, or not of these ids.
    """
    labels, best, own = row.labels[row.first :], [], []
    for label, entry in zip(labels, entries[row.first + 1 :], strict=True):
        name = str(label)
        own.append(entry[name]["logprob"])  # always listed, so a wrong entry is noticed here
        ranked = sorted((-value["logprob"], key == name, int(key)) for key, value in entry.items())
        if len(ranked) < width:
            raise ValueError(f"{len(ranked)} of {width} ids are listed")
        best.append(ranked[:width])
    best_TW3 = np.array(best, dtype=np.float64)
    return LabelLists(best_TW3[:, :, 2].astype(np.int64), -best_TW3[:, :, 0], np.array(own))


def keep_best(lists: LabelLists, labels: list[int], k: int, vocabulary: int) -> Signal:
    """Returns the signal of the k most probable ids of the vocabulary; ids past it are padding.

    Padding that is more probable than the k-th id is divided out, as if the teacher's logits had
    been cut to the vocabulary; the rest of it is in the tail.
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


def check_token_texts(body: JsonObject, tokenizer: Any, shown: str) -> None:
    """Raises `SpecError` unless the texts of the endpoint's tokens are the student's.

    White space around them is not compared: decoders differ in it.
    """
    texts = {
        int(key): str(value.get("decoded_token") or "").strip()
        for entry in body["choices"][0]["prompt_logprobs"][1:]
        for key, value in entry.items()
    }
    pairs = [(text, tokenizer.decode([key]).strip()) for key, text in texts.items()]
    pairs = [pair for pair in pairs if all(pair) and "\ufffd" not in "".join(pair)]
    different = [pair for pair in pairs if pair[0] != pair[1]]
    way_out = (
        "serve the teacher with vLLM, which has /tokenize and gives decoded_token; or set "
        "train.losses: [{name: cross_entropy}]"
    )
    if not pairs:
        raise SpecError(
            f"generate.endpoint {shown} has no /tokenize and gives no token's text, so its tokens "
            f"cannot be compared with the student's; {way_out}"
        )
    if len(different) > MOST_DIFFERENT * len(pairs):
        (theirs, own), number = different[0], len(different)
        raise SpecError(
            f"generate.endpoint {shown}: {number} of {len(pairs)} ids have another text than the "
            f"student's (the first: {theirs!r} against {own!r}), so its distribution is not one of "
            f"the student's tokens; {way_out}"
        )
