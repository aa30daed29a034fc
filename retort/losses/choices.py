"""The token of an answer at which the labels of a closed set first differ: there it is decided.

It is found by encoding the answer with each label in turn, because a label's ids depend on the text
before it.
"""

from collections.abc import Callable, Sequence


def label_choices(
    encode: Callable[[str], list[int]],
    ids: Sequence[int],
    answer: tuple[str, str, str],
    labels: Sequence[str],
) -> tuple[int, list[int]] | None:
    """Returns the index in `ids` at which the label is decided, and the labels' ids there.

    `answer` is the text before the label, the label as it is written, and the text after it; `ids`
    are the answer's own tokens, and `encode` adds no special ones. Labels that share their first
    ids up to that one have one id there, which is listed once. None where the labels never differ,
    or where the ids up to there are not the encoder's (a teacher may split words in another way).
    """
    before, written, after = answer
    own = encode(before + written + after)
    encoded = [own, *(encode(before + label + after) for label in labels)]
    columns = enumerate(zip(*encoded, strict=False))  # up to the end of the shortest
    place = next((at for at, column in columns if len(set(column)) > 1), None)
    if place is None or list(ids[: place + 1]) != own[: place + 1]:
        return None
    return place, list(dict.fromkeys(other[place] for other in encoded))
