"""From the job's training examples to texts that a writer can continue, and from its texts back.

What every prompt begins and ends with, such as a template's own words, is not shown to the writer
and is put around its texts again.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from retort.data import task_types
from retort.data.duplicates.asked import without_system
from retort.plugins import find_function
from retort.records import EXPANDED, Example, Message, Row, content_id
from retort.spec import JobSpec
from retort.stages.expand.ways import Source, Writing

BORDER = re.compile(r"\n|: ")


@dataclass(frozen=True)
class Frame:
    """What all prompts of a job begin and end with."""

    before: str = ""
    after: str = ""

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Frame":
        """Returns what several texts share: up to the end of a line or a colon at the start, and
        whole lines at the end."""
        if len(texts) < 2:
            return cls()
        shared = _shared_start(texts)
        place = max((mark.end() for mark in BORDER.finditer(shared)), default=0)
        end = _shared_start([text[place:][::-1] for text in texts])[::-1]
        return cls(shared[:place], end[end.index("\n") :] if "\n" in end else "")

    def without(self, text: str) -> str:
        """Returns a text without the frame, if it has it."""
        return text.removeprefix(self.before).removesuffix(self.after).strip()

    def around(self, text: str) -> str:
        """Returns a text in the frame, whether it has it already or not."""
        return f"{self.before}{self.without(text)}{self.after}"


def _shared_start(texts: Sequence[str]) -> str:
    """Returns what all texts begin with: what the first and the last of them in order share."""
    least, most = min(texts), max(texts)
    shared = next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), None)
    return least[:shared]


class Form:
    """What the prompts of a job are like, learned from its training examples.

    `seeds` are those that can be continued: one turn of the user, without tools, and without
    choices of their own.
    """

    def __init__(self, spec: JobSpec, train: list[Example]):
        self._spec, self._kind = spec, task_types.load(spec.prepare.task_type)
        self._scrubbers = [
            find_function("scrubber", name, "retort.data.scrubbers") for name in spec.prepare.scrub
        ]
        usable = [example for example in train if self._is_seed(example)]
        self.frame = Frame.of([str(e.messages[-1]["content"]) for e in usable])
        self.seeds = [Source(e.id, self.text_of(e)) for e in usable]
        self._known = {example.id: example for example in train}
        route, by = spec.generate.route, spec.prepare.balance.by
        names = [route.key if route else None, by.partition("metadata.")[2]]
        self._inherited = [name for name in names if name]

    def text_of(self, example: Example) -> str:
        """Returns the text by which an example is shown and compared."""
        return self.frame.without(without_system(example.messages))

    def example_of(self, text: str, origin: Writing) -> Example:
        """Returns the example of a written text. Its system prompt, and what the job chooses its
        teacher or its balance by, are those of its first parent.

        Raises `ValueError` with the reason if the task type cannot ask the text.
        """
        for scrub in self._scrubbers:
            text = scrub(text)
        parent = self._known[origin.parents[0]]
        system = [turn for turn in parent.messages if turn["role"] == "system"]
        messages = [*system, {"role": "user", "content": self.frame.around(text)}]
        prompt = self._kind.prompt(Row(messages=messages), self._spec.prepare)
        metadata = {key: parent.metadata[key] for key in self._inherited if key in parent.metadata}
        metadata |= {"origin": EXPANDED, "way": origin.way, "parents": list(origin.parents)}
        metadata |= {"detail": origin.detail} if origin.detail else {}
        name = self._name(messages)
        return Example(name, "train", messages, metadata=metadata, options=prompt.options)

    def add(self, example: Example) -> Source:
        """Takes an example among those that can be parents; returns it as one."""
        self._known[example.id] = example
        return Source(example.id, self.text_of(example), is_written=True)

    def _name(self, messages: list[Message]) -> str:
        name, number = f"{EXPANDED}-{content_id(messages)}", 2
        while name in self._known:
            name, number = f"{EXPANDED}-{content_id(messages)}-{number}", number + 1
        return name

    def _is_seed(self, example: Example) -> bool:
        roles = [turn["role"] for turn in example.messages if turn["role"] != "system"]
        if roles != ["user"] or example.tools:
            return False
        try:
            prompt = self._kind.prompt(Row(messages=example.messages), self._spec.prepare)
        except ValueError:
            return False
        return prompt.options == example.options
