"""Texts, and what is found among them, for the tests of duplicates and of leaks."""

from retort.data.duplicates import DuplicatePair, Texts, find_duplicates, find_leaks
from retort.spec.prepare import Decontaminate, Deduplicate
from tests.support.slow_duplicates import Row

ASKS = "the quick brown fox jumps over the lazy dog near a river bank while old birds sing songs"
CONTEXT = " ".join(f"w{chr(97 + i % 26)}{chr(97 + i // 26)}q" for i in range(120))


def gathered(rows) -> Texts:
    texts = Texts()
    for row in rows:
        texts.add(*((row,) if isinstance(row, str) else row))
    return texts


def duplicates(*rows: str | Row, **knobs) -> list[tuple[int, int, str]]:
    found = find_duplicates(gathered(rows), Deduplicate(**knobs))
    return [(pair.index, pair.other, pair.kind) for pair in found]


def leaks(
    texts: list[str], held_out: list[str], overlap=0.6, numbers_matter=True, words_matter=True
) -> list[DuplicatePair]:
    knobs = Decontaminate(overlap=overlap)
    return find_leaks(gathered(texts), gathered(held_out), knobs, numbers_matter, words_matter)
