"""Natural language inference, and any other classification: the answer is one label of a set.

The order of the labels matters: data that numbers its labels, as SNLI and MNLI do, counts in it.
"""

import re
from typing import Any

from retort.data.reasoning import conclusion
from retort.data.task_types import read_prompt
from retort.records import Example, Prompt, Row
from retort.spec.prepare import Prepare

FILTERS = ("finished", "not_refused", "non_empty", "label_in_set", "verified")
METRICS = ("accuracy", "macro_f1")
# 0, 1, 2 in SNLI (Bowman et al., 2015) and MNLI (Williams et al., 2018)
LABELS = ("entailment", "neutral", "contradiction")
ALONE = "Answer with one of these labels alone: {labels}."
PAIR = f"""\
Premise: {{premise}}
Hypothesis: {{hypothesis}}

What does the premise say about the hypothesis? {ALONE}"""
TEMPLATES = (PAIR, "{prompt}", f"{{text}}\n\nWhich label fits this text? {ALONE}")
REASONING = {
    "chain_of_thought": (
        "Reason step by step before you answer: say what is stated, and what does or does not "
        "follow from it. Then end with one last line that holds the label alone, in this form:\n"
        "Answer: <label>"
    )
}


def prompt(row: Row, knobs: Prepare) -> Prompt:
    """Reads a chat, `premise` and `hypothesis`, `text`, or `prompt`, each with its `label`."""
    labels = knobs.labels or LABELS
    if not knobs.labels and "text" in row.fields and not {"premise", "prompt"} & set(row.fields):
        raise ValueError(
            "rows with text and label need their set of labels, in the order of their numbers if "
            "they are numbered; set prepare.labels, for example [negative, positive]"
        )
    extra = {"labels": ", ".join(labels)}
    chat, reply = read_prompt(row, knobs, TEMPLATES, extra, ("label", "completion", "answer"))
    expected = None if reply is None else _expected(reply, labels)
    by_number = expected is not None and _label(str(reply), labels) is None
    reference = expected if by_number or reply is None else str(reply)
    return Prompt(chat, expected, reference, {label: label for label in labels})


def answer(text: str, example: Example) -> str | None:
    """The label as it stands in the set; None where a text names none, or more than one.

    A JSON field or what stands after `Answer:` decides; without these the whole text does.
    """
    return _label(conclusion(text), tuple(example.options or LABELS))


def equal(given: str, expected: str) -> bool:
    """The same label in any case."""
    return given.casefold() == expected.casefold()


def _label(text: str, labels: tuple[str, ...]) -> str | None:
    plain = {_plain(label): label for label in labels}
    for exact in ({_plain(text)}, {_plain(line) for line in text.splitlines()}):
        if len(named := exact & set(plain)) == 1:
            return plain[named.pop()]
    # the longest first: "not entailment" must not count as "entailment"
    longest = sorted(plain, key=len, reverse=True)
    ways = [r"[\s_-]+".join(map(re.escape, name.split())) for name in longest]
    pattern = rf"(?<![^\W_])(?<!\w[_-])(?:{'|'.join(ways)})(?![^\W_])(?![_-]\w)"
    found = {_plain(name) for name in re.findall(pattern, text.casefold())}
    return plain[found.pop()] if len(found) == 1 else None


def _plain(text: str) -> str:
    """Returns a text case-folded, its words with one space between and nothing around them."""
    words = re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", text.casefold())
    return words.strip(" \t\r\n\"'`*_.,:;!?()[]<>#")


def _expected(reply: Any, labels: tuple[str, ...]) -> str:
    """Returns the label that a row gives as text, or as its place in the set."""
    if label := _label(conclusion(str(reply)), labels):
        return label
    is_whole = isinstance(reply, bool) or (isinstance(reply, float) and reply.is_integer())
    number = str(int(reply) if is_whole else reply).strip()
    if number in ("-1", "-"):
        raise ValueError(f"no gold label: the label is {number}")
    if number.isdecimal() and int(number) < len(labels):
        return labels[int(number)]
    raise ValueError(
        f"the label {number[:60]!r} is none of {', '.join(labels)}; "
        "set prepare.labels to the set that these rows use"
    )
