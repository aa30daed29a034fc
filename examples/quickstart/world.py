"""The quickstart's world: word problems of two or three steps, with worked solutions.

One problem has many right solutions: each step may be worded in several ways, drawn at random.
A problem's split is decided by a hash of its story kind and numbers, so no held-out problem can
occur in any training text, whatever the seeds are and however its names or objects differ.
"""

import hashlib
import operator
import random
from collections.abc import Iterator
from dataclasses import dataclass

NAMES = {
    "Ada": "she",
    "Ben": "he",
    "Cleo": "she",
    "Dan": "he",
    "Eva": "she",
    "Finn": "he",
    "Gina": "she",
    "Hugo": "he",
    "Iris": "she",
    "Jack": "he",
    "Kira": "she",
    "Leo": "he",
}
OBJECTS = [
    "apples",
    "pens",
    "coins",
    "cards",
    "shells",
    "stamps",
    "stones",
    "cups",
    "keys",
    "pears",
    "beads",
    "books",
    "eggs",
    "plums",
    "balls",
    "figs",
]
BOXES = ["boxes", "bags", "jars", "packs"]
GAINS = ["buys {n} more", "finds {n} more", "gets {n} from {friend}", "wins {n} more"]
LOSSES = ["gives {n} to {friend}", "loses {n}", "sells {n}", "drops {n}"]
LINKS = [". Then {pronoun} ", " and ", ", then "]

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}

# What a step says is decided by the story; how it says it is a free choice among these.
STARTS = ["", "First ", "Here ", "So "]
SIGNS = {
    "+": ["+", " plus ", " and "],
    "-": ["-", " minus ", " less "],
    "*": ["*", " times ", " by "],
    "/": ["/", " over ", " shared by "],
}
RESULTS = ["=", " is ", " makes ", " gives ", " equals "]
LINES = [". ", "; ", ". Then ", ". Next ", ", so ", ", then "]

HELD_OUT_SLOTS = {0: "validation", 1: "test"}  # of 16: an eighth of all number choices is held out


@dataclass(frozen=True)
class Problem:
    """One story, its worked solution, and the facts that decide its split."""

    question: str
    solution: str
    answer: str
    kind: str
    numbers: tuple[int, ...]

    @property
    def split(self) -> str:
        """`validation`, `test` or `train`: a function of the kind and numbers alone."""
        digest = hashlib.sha256(repr((self.kind, self.numbers)).encode()).digest()
        return HELD_OUT_SLOTS.get(digest[0] % 16, "train")


class Story:
    """The running state while one story is told: the cast, its numbers, the solution so far."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.name, self.friend = rng.sample(list(NAMES), 2)
        self.pronoun = NAMES[self.name]
        self.thing, self.other = rng.sample(OBJECTS, 2)
        self.box = rng.choice(BOXES)
        self.numbers: list[int] = []
        self.solution = ""
        self.value = 0

    def number(self, low: int, high: int) -> int:
        """A number from `low` to `high`, both possible, noted as part of the problem's identity."""
        value = self.rng.randint(low, high)
        self.numbers.append(value)
        return value

    def compute(self, left: int, sign: str, right: int) -> int:
        """The value of one sum, which becomes a step of the worked solution, in any wording."""
        self.write(LINES if self.solution else STARTS)
        orders = [(left, right), (right, left)] if sign in "+*" else [(left, right)]
        self.write([f"{a}{word}{b}" for a, b in orders for word in SIGNS[sign]])
        self.write(RESULTS)
        self.value = OPERATIONS[sign](left, right)
        self.write([str(self.value)])
        return self.value

    def write(self, wordings: list[str]) -> None:
        """Adds one of several wordings to the worked solution, each as likely as the others."""
        self.solution += self.rng.choice(wordings)

    def event(self, total: int) -> tuple[str, int]:
        """One gain or loss that keeps the total within 1 to 99: its words and the new total."""
        gain = self.rng.random() < 0.5
        if total < 4:
            gain = True
        elif total > 79:
            gain = False
        amount = self.number(2, 20) if gain else self.number(2, min(20, total - 1))
        words = self.rng.choice(GAINS if gain else LOSSES).format(n=amount, friend=self.friend)
        # The sign belongs to the problem's identity as much as the amount does.
        self.numbers[-1] = amount if gain else -amount
        return words, self.compute(total, "+" if gain else "-", amount)

    def events(self, total: int, count: int) -> tuple[str, int]:
        """`count` events, joined into a passage that follows the story's opening sentence."""
        text = f" {self.pronoun.capitalize()} "
        for position in range(count):
            if position:
                text += self.rng.choice(LINKS).format(pronoun=self.pronoun)
            words, total = self.event(total)
            text += words
        return text + ".", total


def tell_chain(story: Story, count: int) -> str:
    start = story.number(5, 60)
    opening = story.rng.choice(["{a} has {n} {t}.", "There are {n} {t} with {a}."])
    passage, _ = story.events(start, count)
    text = opening.format(a=story.name, n=start, t=story.thing) + passage
    return text + f" How many {story.thing} does {story.name} have now?"


def tell_chain_of_two(story: Story) -> str:
    return tell_chain(story, 2)


def tell_chain_of_three(story: Story) -> str:
    return tell_chain(story, 3)


def tell_groups(story: Story) -> str:
    boxes, each = story.number(2, 9), story.number(2, 9)
    total = story.compute(boxes, "*", each)
    passage, _ = story.events(total, 1)
    return (
        f"{story.name} has {boxes} {story.box} with {each} {story.thing} each.{passage}"
        f" How many {story.thing} does {story.name} have now?"
    )


def tell_delivery(story: Story) -> str:
    start, boxes, each = story.number(5, 30), story.number(2, 6), story.number(2, 9)
    total = story.compute(start, "+", story.compute(boxes, "*", each))
    words, _ = story.event(total)
    return (
        f"{story.name} has {start} {story.thing} and buys {boxes} {story.box} with {each} each."
        f" Then {story.pronoun} {words}. How many {story.thing} does {story.name} have now?"
    )


def tell_comparison(story: Story) -> str:
    own, extra = story.number(5, 30), story.number(2, 20)
    fewer = extra < own and story.rng.random() < 0.5
    if fewer:
        story.numbers[-1] = -extra
    other = story.compute(own, "-" if fewer else "+", extra)
    story.compute(own, "+", other)
    return (
        f"{story.name} has {own} {story.thing}. {story.friend} has {extra}"
        f" {'fewer' if fewer else 'more'}. How many {story.thing} do both have together?"
    )


def tell_multiple(story: Story) -> str:
    own, times = story.number(2, 9), story.number(2, 9)
    story.compute(own, "+", story.compute(own, "*", times))
    return (
        f"{story.name} has {own} {story.thing}. {story.friend} has {times} times as many."
        f" How many {story.thing} do both have together?"
    )


def tell_shopping(story: Story) -> str:
    first, second = story.number(2, 30), story.number(2, 20)
    money = story.number(first + second + 1, 90)
    story.compute(money, "-", story.compute(first, "+", second))
    return (
        f"{story.name} has {money} dollars and pays {first} for {story.thing} and {second} for"
        f" {story.other}. How many dollars are left?"
    )


def tell_reading(story: Story) -> str:
    pages, days, extra = story.number(2, 9), story.number(2, 9), story.number(2, 18)
    story.compute(story.compute(pages, "*", days), "+", extra)
    return (
        f"{story.name} reads {pages} pages a day for {days} days. Then {story.pronoun} reads"
        f" {extra} more. How many pages does {story.name} read?"
    )


def tell_sharing(story: Story) -> str:
    children, each = story.number(2, 9), story.number(2, 9)
    share = story.compute(children * each, "/", children)
    words, _ = story.event(share)
    return (
        f"{story.name} and others share {children * each} {story.thing} among {children}."
        f" Then {story.name} {words}. How many {story.thing} does {story.name} have now?"
    )


TELLERS = [
    tell_chain_of_two,
    tell_chain_of_three,
    tell_groups,
    tell_delivery,
    tell_comparison,
    tell_multiple,
    tell_shopping,
    tell_reading,
    tell_sharing,
]


def make_problem(rng: random.Random) -> Problem:
    """One problem of a random kind, from the generator's state alone."""
    teller = rng.choice(TELLERS)
    story = Story(rng)
    question = teller(story)
    answer = str(story.value)
    solution = f"{story.solution}. #### {answer}"
    return Problem(question, solution, answer, teller.__name__[5:], tuple(story.numbers))


def problems(split: str, seed: int, seen: set[str]) -> Iterator[Problem]:
    """An endless stream of a split's problems; questions in `seen` are skipped, new ones added."""
    rng = random.Random(f"{split}-{seed}")
    while True:
        problem = make_problem(rng)
        if problem.split == split and problem.question not in seen:
            seen.add(problem.question)
            yield problem


def sample_texts() -> list[str]:
    """Every text the world is made of, for the tokenizer's vocabulary: a large enough sample."""
    rng = random.Random(0)
    sample = [make_problem(rng) for _ in range(20_000)]
    return [text for problem in sample for text in (problem.question, problem.solution)]
