"""Whether a written prompt is new: no copy or near copy of a training prompt, of one written
before, or of a held-out row. What counts as one is what `prepare` counts, whatever it leaves in."""

from collections.abc import Iterable

from retort.data import sources
from retort.data.duplicates import DuplicatePair, Texts, find_duplicates, find_leaks
from retort.data.duplicates.asked import texts_of_row
from retort.spec import JobSpec


class Novelty:
    """The prompts that there are. Texts are as a row is compared: without what a template adds."""

    def __init__(self, spec: JobSpec, train: Iterable[str], held_out: Iterable[str]):
        knobs = spec.prepare
        self._near = knobs.deduplicate.model_copy(update={"exact": True, "near": True})
        self._leaks = knobs.decontaminate
        self._known = list(train)
        self._num_seeds = len(self._known)
        self._held_out = Texts()
        for text in (*held_out, *_foreign(spec)):
            self._held_out.add(text)

    def refusals(self, texts: list[str]) -> dict[int, str]:
        """Returns why some of the texts are not new, by their places; of equals the first is."""
        found = dict.fromkeys(self._leaking(texts), "copy of a held-out row")
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
        found |= dict.fromkeys(self._leaking(self._known), "copy of a held-out row")
        first = self._num_seeds
        return {place - first: reason for place, reason in found.items() if place >= first}

    def _repeats(self, texts: list[str]) -> list[DuplicatePair]:
        return find_duplicates(_added(texts), self._near)

    def _leaking(self, texts: list[str]) -> list[int]:
        differences = self._near.numbers_matter, self._near.words_matter
        pairs = find_leaks(_added(texts), self._held_out, self._leaks, *differences)
        return [pair.index for pair in pairs]


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
