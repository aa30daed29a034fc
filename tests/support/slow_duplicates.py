"""The slow, obvious version of finding duplicates and leaks, with Python's own sets.

It reads texts of plain words, of which the numbers and negations are those named here. The
surprise: it compares each text with every kept one, so give it a few hundred.
"""

import random

from retort.stages.prepare.duplicates import DuplicatePair

NUMBERS, NEGATIONS = ("3", "7", "12", "two"), ("not", "never")
Row = tuple[str, str, str | None]  # text, scope, answer


def triples(words: list[str]) -> set[tuple[str, ...]]:
    return set(zip(words, words[1:], words[2:], strict=False))


def jaccard(one: set, two: set) -> float:
    return len(one & two) / len(one | two) if one | two else 1.0


def shared_by_many(sets: list[set]) -> set:
    if len(sets) < 50:
        return set()
    counts: dict = {}
    for item in (item for each in sets for item in each):
        counts[item] = counts.get(item, 0) + 1
    return {item for item, count in counts.items() if count > 0.1 * len(sets)}


def lines_of(text: str) -> list[tuple[str, ...]]:
    return [tuple(line.split()) for line in text.split("\n") if line.split()]


def slow_same_lines(lines: list[list[tuple]], common: set, common_lines: set) -> bool:
    at = [
        max((i for i, line in enumerate(each) if line not in common_lines), default=len(each) - 1)
        for each in lines
    ]
    last = [each[i] for each, i in zip(lines, at, strict=True)]
    body = [sum(each[:i], ()) for each, i in zip(lines, at, strict=True)]
    if last[0] == last[1]:
        return jaccard(*(triples(part) - common for part in body)) >= 0.6
    bodies, lasts = ([triples(part) - common for part in parts] for parts in (body, last))
    for own, other in ((0, 1), (1, 0)):
        in_body = len(lasts[own] & bodies[other])
        if in_body >= len(lasts[own] & lasts[other]) and in_body > len(lasts[own]) / 2:
            return False
    similar = jaccard(set(last[0]), set(last[1])) >= 0.5 and jaccard(*bodies) >= 0.6
    return similar and min(map(len, last)) > 8


def slow_similarity(one: Row, two: Row, common: set, common_lines: set) -> float:
    words = [row[0].split() for row in (one, two)]
    numbers = [[word for word in each if word in NUMBERS] for each in words]
    negations = [sum(word in NEGATIONS for word in each) for each in words]
    answers = {one[2], two[2]} - {None}
    if one[1] != two[1] or numbers[0] != numbers[1] or len({*negations}) + len(answers) > 2:
        return 0
    lines = [lines_of(row[0]) for row in (one, two)]
    if (len(lines[0]) > 1) != (len(lines[1]) > 1):
        return 0
    if len(lines[0]) > 1 and not slow_same_lines(lines, common, common_lines):
        return 0
    sets = [triples(each) - common for each in words]
    return jaccard(*sets) if all(sets) else 0


def slow_duplicates(rows: list[Row]) -> list[DuplicatePair]:
    first: dict = {}
    found = []
    for index, (text, scope, _) in enumerate(rows):
        other = first.setdefault((tuple(text.split()), scope), index)
        if other != index:
            found.append(DuplicatePair(index, other, 1.0, "exact"))
    kept: list[int] = []
    rest = [index for index in sorted(first.values()) if len(rows[index][0].split()) > 2]
    shared = slow_shared(rows, rest)
    for index in rest:
        every = [(slow_similarity(rows[other], rows[index], *shared), -other) for other in kept]
        similarity, other = max(every, default=(0, 0))
        if similarity >= 0.6:
            found.append(DuplicatePair(index, -other, similarity, "near"))
        else:
            kept.append(index)
    return sorted(found, key=lambda pair: pair.index)


def slow_shared(rows: list[Row], rest: list[int]) -> tuple[set, set]:
    lines = [set(lines_of(rows[i][0])) if len(lines_of(rows[i][0])) > 1 else set() for i in rest]
    return shared_by_many([triples(rows[i][0].split()) for i in rest]), shared_by_many(lines)


def slow_leaks(texts: list[str], held_out: list[str], overlap: float) -> list[DuplicatePair]:
    split = [text.split() for text in texts]
    common = shared_by_many([triples(words) for words in split])
    found = []
    for index, words in enumerate(split):
        best: tuple[float, int] | None = None
        for number, held in enumerate(held.split() for held in held_out):
            wanted = triples(held) - common
            share = len(wanted & triples(words)) / len(wanted) if wanted else 0
            has = all(words.count(n) >= held.count(n) for n in NUMBERS)
            if words == held:
                share = 2  # before those that it holds
            if share >= overlap and has and (best is None or share > best[0]):
                best = (share, number)
        if best:
            found.append(DuplicatePair(index, best[1], min(best[0], 1.0), "leak"))
    return found


def corpus(seed: int) -> list[Row]:
    """Rows of which many are copies, with some words, lines, scopes and answers changed."""
    draw = random.Random(seed)
    letters = [chr(97 + i) + chr(97 + j) + "z" for i in range(16) for j in range(16)]
    vocabulary = letters + [*NUMBERS, *NEGATIONS] * 2
    template = ["please", "read", "all", "of", "the", "following", "text", "and", "say"]
    rows: list[list[str]] = []
    for _ in range(220):
        if rows and draw.random() < 0.6:
            words = list(draw.choice(rows))
            for _ in range(draw.choice([0, 1, 1, 1, 2, 2, 3])):
                words[draw.randrange(len(words))] = draw.choice(vocabulary)
        else:
            words = [draw.choice(letters) for _ in range(draw.randrange(0, 60))]
            for at in [at for at in range(3, len(words)) if draw.random() < 0.03]:
                words[at] += draw.choice([" 3", " not", "\n", "\n", " two"])
            words = ([*template, "\n"] if draw.random() < 0.4 else []) + words + ["\nthe answer"]
        rows.append(words)
    return [
        (" ".join(words), draw.choice(["", "", "be kind"]), draw.choice([None, "a", "a", "b"]))
        for words in rows
    ]
