"""Whether a written prompt is new: no copy or near copy of a training prompt, of one written
before, or of a held-out row. What counts as one is what `prepare` counts, whatever it leaves in.

Of a held-out row more counts, for a refused prompt costs little: one with all its numbers in their
order, two or more, and most of its words has the same answer whatever it is told of.
"""

import re
from collections.abc import Iterable

from retort.data import sources
from retort.data.duplicates import DuplicatePair, Texts, find_duplicates, find_leaks
from retort.data.duplicates.asked import texts_of_row
from retort.spec import JobSpec

WORD, NUMBER = re.compile(r"\w+"), re.compile(r"\d+(?:[.,]\d+)*")
LEAST_NUMBERS, MOST_WORDS = 2, 0.8
Numbers = tuple[str, ...]
HELD_OUT, NEAR_HELD_OUT = "copy of a held-out row", "near copy of a held-out row"


class Novelty:
    """The prompts that there are. Texts are as a row is compared: without what a template adds."""

    def __init__(self, spec: JobSpec, train: Iterable[str], held_out: Iterable[str]):
        knobs = spec.prepare
        self._near = knobs.deduplicate.model_copy(update={"exact": True, "near": True})
        self._leaks = knobs.decontaminate
        self._known = list(train)
        self._num_seeds = len(self._known)
        self._held_out = Texts()
        self._by_numbers: dict[Numbers, list[set[str]]] = {}
        for text in (*held_out, *_foreign(spec)):
            self._held_out.add(text)
            numbers, words = _told(text)
            if len(numbers) >= LEAST_NUMBERS:
                self._by_numbers.setdefault(numbers, []).append(words)

    def refusals(self, texts: list[str]) -> dict[int, str]:
        """Returns why some of the texts are not new, by their places; of equals the first is."""
        found = self._leaking(texts)
        rest = [place for place in range(len(texts)) if place not in found]
        num_known = len(self._known)
        for pair in self._repeats([*self._known, *(texts[place] for place in rest)]):
            if pair.index >= num_known:
                of = "a training row" if pair.other < self._num_seeds else "a written prompt"
                near = "near " * (pair.kind == "near")
                found[rest[pair.index - num_known]] = f"{near}copy of {of}"
        return found

    def add(self, texts: Iterable[str]) -> None:
        """Adds texts to those that there are."""
        self._known += texts

    def late_refusals(self) -> dict[int, str]:
        """Returns why some of the added texts, counted from 0, are not new, now that all are seen
        together: which words are common to many is then another question."""
        found = {pair.index: "near copy of another prompt" for pair in self._repeats(self._known)}
        found |= self._leaking(self._known)
        first = self._num_seeds
        return {place - first: reason for place, reason in found.items() if place >= first}

    def drop(self, places: Iterable[int]) -> None:
        """Takes out added texts, counted from 0."""
        gone = {self._num_seeds + place for place in places}
        self._known = [text for place, text in enumerate(self._known) if place not in gone]

    def _repeats(self, texts: list[str]) -> list[DuplicatePair]:
        return find_duplicates(_added(texts), self._near)

    def _leaking(self, texts: list[str]) -> dict[int, str]:
        near = (place for place, text in enumerate(texts) if self._retells(text))
        differences = self._near.numbers_matter, self._near.words_matter
        pairs = find_leaks(_added(texts), self._held_out, self._leaks, *differences)
        return dict.fromkeys(near, NEAR_HELD_OUT) | {pair.index: HELD_OUT for pair in pairs}

    def _retells(self, text: str) -> bool:
        numbers, own = _told(text)
        held_out = self._by_numbers.get(numbers, ())
        return any(len(words & own) >= MOST_WORDS * len(words) for words in held_out)


def _told(text: str) -> tuple[Numbers, set[str]]:
    """Returns a text's numbers in their order, and its other words."""
    words = (word.casefold() for word in WORD.findall(text))
    return tuple(NUMBER.findall(text)), {word for word in words if not word.isdigit()}


def _added(texts: Iterable[str]) -> Texts:
    found = Texts()
    for text in texts:
        found.add(text)
    return found


def _foreign(spec: JobSpec) -> Iterable[str]:
    """Yields what the rows of the files ask that must not be learned."""
    where = "prepare.decontaminate.against"
    for source in spec.prepare.decontaminate.against:
        for raw in sources.read(source, where, spec.prepare.max_row_bytes):
            if raw.value is not None:
                yield from texts_of_row(raw.value)
