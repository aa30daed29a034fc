"""Where an answer's label is decided: the token at which the labels of a closed set part ways.

Found by spelling the answer with each label in turn, in context: a label's ids depend on what
stands before it.
"""

from collections.abc import Callable, Sequence


def label_choices(
    encode: Callable[[str], list[int]],
    ids: Sequence[int],
    answer: tuple[str, str, str],
    labels: Sequence[str],
) -> tuple[int, list[int]] | None:
    """Returns the place in `ids` at which the label is decided, and the labels' ids there.

    `answer` is the text before the label, the label as it is written, and the text after it; `ids`
    are the answer's own tokens, `encode` adds no special ones. Labels that are spelled alike up to
    and with that place share an id, which is given once. None where the labels never part, or
    where the tokens up to there are not those of the text (a teacher may spell otherwise).
    """
    before, written, after = answer
    own = encode(before + written + after)
    spelled = [own, *(encode(before + label + after) for label in labels)]
    columns = enumerate(zip(*spelled, strict=False))  # as far as the shortest reaches
    place = next((at for at, column in columns if len(set(column)) > 1), None)
    if place is None or list(ids[: place + 1]) != own[: place + 1]:
        return None
    return place, list(dict.fromkeys(other[place] for other in spelled))
