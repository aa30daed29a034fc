"""Natural language inference, and any other classification: the answer is one label of a set.

The order of the labels matters: data may give a label as its index, as SNLI and MNLI do.
"""

from typing import Any

from retort.data.reasoning import conclusion
from retort.data.task_types import read_prompt
from retort.data.task_types._labels import in_text, of_truth, whole_number
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
            "rows with text and label need the set of labels, in the order of their numbers if "
            "they are numbers; set prepare.labels, for example [negative, positive]"
        )
    extra = {"labels": ", ".join(labels)}
    columns = ("label", "completion", "answer")
    chat, reply, asked = read_prompt(row, knobs, TEMPLATES, extra, columns)
    expected = None if reply is None else _expected(reply, labels)
    by_number = expected is not None and in_text(str(reply), labels) is None
    reference = expected if by_number or reply is None else str(reply)
    return Prompt(chat, expected, reference, {label: label for label in labels}, asked=asked)


def answer(text: str, example: Example) -> str | None:
    """The label as written in the set; None if the text names none, or more than one.

    A JSON field or the text after `Answer:` decides; without these the whole text does.
    """
    return in_text(conclusion(text), tuple(example.options or LABELS))


def equal(given: str, expected: str) -> bool:
    """The same label in any case."""
    return given.casefold() == expected.casefold()


def _expected(reply: Any, labels: tuple[str, ...]) -> str:
    """Returns the label that a row gives as text, as its index in the set, or as a truth value.

    Numbers and truth values may be written as pandas writes them: 1.0, True.
    """
    if label := in_text(conclusion(str(reply)), labels) or of_truth(reply, labels):
        return label
    number = whole_number(reply)
    text = str(reply).strip()
    if number == -1 or text == "-":
        raise ValueError(f"no gold label: the label is {text}")
    if number is not None and 0 <= number < len(labels):
        return labels[number]
    raise ValueError(
        f"the label {text[:60]!r} is none of {', '.join(labels)}; "
        "set prepare.labels to the set that these rows use"
    )
