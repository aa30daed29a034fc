"""Summaries within a budget of words, scored by the overlap with a reference (ROUGE-L).

Two good summaries are rarely the same text: agreement with the teacher is ROUGE-L too.
"""

from retort.data.reasoning import conclusion
from retort.data.task_types import read_prompt
from retort.records import Example, Prompt, Row
from retort.spec.prepare import Prepare

FILTERS = ("finished", "not_refused", "non_empty", "summary_length")
METRICS = ("rouge_l", "rouge_1", "rouge_2", "bleu", "length_ratio", "entity_coverage")
SUMMARIZE = "Summarize the following text in at most {max_words} words."
TEMPLATES = (f"{SUMMARIZE}\n\n{{article}}", "{prompt}", f"{SUMMARIZE}\n\n{{text}}")
# Source: Adams et al., "From Sparse to Dense: GPT-4 Summarization with Chain of Density Prompting"
# (2023, arXiv:2309.04269)
REASONING = {
    "chain_of_density": (
        "Write five drafts of the summary, each denser than the one before and of the same "
        "length. The first says little beyond what the text is about. For each further draft, "
        "first list one to three informative entities of the text that the draft before it "
        "misses; then rewrite that draft so that it names them too: fuse and compress, drop empty "
        "phrases, but never drop an entity. Every draft can be understood without the text. "
        "Then repeat the fifth draft alone as the last paragraph, in this form:\n"
        "Answer: <the final summary>"
    )
}


def prompt(row: Row, knobs: Prepare) -> Prompt:
    """Reads a chat, `article` (or `text`) with `summary`, or `prompt` with `completion`."""
    extra = {"max_words": str(knobs.max_summary_words)}
    columns = ("summary", "completion", "answer")
    chat, reply, asked = read_prompt(row, knobs, TEMPLATES, extra, columns)
    if reply is None:
        return Prompt(chat, asked=asked)
    expected = _folded(conclusion(str(reply))) or None
    return Prompt(chat, expected, str(reply), asked=asked)


def answer(text: str, example: Example) -> str | None:
    """The summary with white space folded, without the drafts before it."""
    return _folded(conclusion(text)) or None


def equal(given: str, expected: str) -> bool:
    """The same text."""
    return given == expected


def _folded(text: str) -> str:
    return " ".join(text.split())
