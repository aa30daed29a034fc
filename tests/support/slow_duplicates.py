"""The slow, obvious version of finding duplicates and leaks, with Python's own sets.

It reads texts of plain words in lower case, of which the numbers, negations and words that say
nothing are those named here. It compares each text with every kept one: give it a few hundred.
"""

import random

from retort.data.duplicates import DuplicatePair

NUMBERS, NEGATIONS = ("3", "7", "12", "two"), ("not", "never")
FUNCTIONS = ("please", "of", "the", "and")
SHORT = 16  # words
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


def content(words) -> set[str]:
    return {word for word in words if word not in (*NUMBERS, *NEGATIONS, *FUNCTIONS)}


def last_line(lines: list[tuple], common_lines: set) -> tuple:
    own = [line for line in lines if line not in common_lines]
    return (own or lines or [()])[-1]


def slots(own: set[str], members: list[set[str]]) -> set[str]:
    """The words of a text that a template fills in, given those of the texts similar to it."""
    enough = max(2, len(members) / 2)
    lacking = [word for word in own if sum(word not in m for m in members) >= enough]
    added = {word for member in members for word in member - own}
    added = {word for word in added if sum(word in m for m in members) >= enough}
    return set(lacking) if len(members) > 1 and len(lacking) > len(added) else set()


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
    asked = [last_line(each, common_lines if len(each) > 1 else set()) for each in lines]
    if min(map(len, asked)) < SHORT and content(asked[0]) != content(asked[1]):
        return 0
    sets = [triples(each) - common for each in words]
    return jaccard(*sets) if all(sets) else 0


def slow_duplicates(rows: list[Row]) -> list[DuplicatePair]:
    found = [DuplicatePair(index, other, 1.0, "exact") for index, other in slow_copies(rows)]
    copies = {pair.index for pair in found}
    rest = [i for i, row in enumerate(rows) if i not in copies and len(row[0].split()) > 2]
    near = slow_near(rows, rest, {index: "" for index in rest})
    words = [content(row[0].split()) for row in rows]
    filled: dict[int, str] = {}
    for kept in {pair.other for pair in near}:
        members = [pair.index for pair in near if pair.other == kept]
        own = slots(words[kept], [words[index] for index in members])
        for index in members:
            if set() < words[kept] - words[index] <= own:
                filled[index] = " ".join(sorted(words[index] - words[kept]))
    near = [pair for pair in near if pair.index not in filled]
    near += slow_near(rows, sorted(filled), filled)
    return sorted(found + near, key=lambda pair: pair.index)


def slow_copies(rows: list[Row]) -> list[tuple[int, int]]:
    first: dict = {}
    copies = []
    for index, (text, scope, answer) in enumerate(rows):
        asked = tuple(text.split()), scope
        other = first.setdefault(asked, index)
        if len({answer, rows[other][2]} - {None}) > 1:
            other = first.setdefault((asked, answer), index)
        else:
            first.setdefault((asked, answer), index)
        if other != index:
            copies.append((index, other))
    return copies


def slow_near(rows: list[Row], rest: list[int], fillings: dict[int, str]) -> list[DuplicatePair]:
    kept: list[int] = []
    found = []
    shared = slow_shared(rows, rest)
    for index in rest:
        every = [
            (slow_similarity(rows[other], rows[index], *shared), -other)
            for other in kept
            if fillings[other] == fillings[index]
        ]
        similarity, other = max(every, default=(0, 0))
        if similarity >= 0.6:
            found.append(DuplicatePair(index, -other, similarity, "near"))
        else:
            kept.append(index)
    return found


def slow_shared(rows: list[Row], rest: list[int]) -> tuple[set, set]:
    lines = [set(lines_of(rows[i][0])) if len(lines_of(rows[i][0])) > 1 else set() for i in rest]
    return shared_by_many([triples(rows[i][0].split()) for i in rest]), shared_by_many(lines)


def slow_leaks(texts: list[str], held_out: list[str], overlap: float) -> list[DuplicatePair]:
    split = [text.split() for text in texts]
    common = shared_by_many([triples(words) for words in split])
    every = [lines_of(text) for text in held_out]
    common_lines = shared_by_many([set(lines) if len(lines) > 1 else set() for lines in every])
    shares: dict[tuple[int, int], float] = {}
    for index, words in enumerate(split):
        for number, held in enumerate(held.split() for held in held_out):
            wanted = triples(held) - common
            share = len(wanted & triples(words)) / len(wanted) if wanted else 0
            has = all(words.count(n) >= held.count(n) for n in NUMBERS)
            asked = last_line(every[number], common_lines if len(every[number]) > 1 else set())
            if share >= overlap and has and holds_question(words, held, asked):
                shares[index, number] = share
    shares = without_templates(shares, split, [held.split() for held in held_out])
    for index, words in enumerate(split):
        equal = [number for number, held in enumerate(held_out) if held.split() == words]
        if equal:
            shares[index, equal[0]] = 2  # before those that it holds
    best: dict[int, tuple[float, int]] = {}
    for (index, number), share in sorted(shares.items()):
        if share > best.get(index, (0, 0))[0]:
            best[index] = (share, number)
    return [
        DuplicatePair(index, number, min(share, 1.0), "leak")
        for index, (share, number) in sorted(best.items())
    ]


def holds_question(words: list[str], held: list[str], asked: tuple) -> bool:
    if len(asked) >= SHORT:
        return True
    is_alone = len(asked) == len(held) and len(words) < 2 * len(held)
    return content(asked) <= content(words) and (not is_alone or content(words) <= content(held))


def without_templates(shares, texts: list[list[str]], held_out: list[list[str]]) -> dict:
    """The shares without those of a text and a held-out one that only fill the same template."""
    words = [content(text) for text in texts], [content(held) for held in held_out]
    for side, other in ((1, 0), (0, 1)):
        filled = set()
        pairs = [p for p in shares if side or len(texts[p[0]]) < 2 * len(held_out[p[1]])]
        for own in {pair[side] for pair in pairs}:
            members = sorted(pair[other] for pair in pairs if pair[side] == own)
            found = slots(words[side][own], [words[other][m] for m in members])
            missing = [m for m in members if set() < words[side][own] - words[other][m] <= found]
            filled |= {(m, own) if side else (own, m) for m in missing}
        shares = {pair: share for pair, share in shares.items() if pair not in filled}
    return shares


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
