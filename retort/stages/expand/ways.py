"""The ways in which a model is asked for prompts, and what it is told in each.

Sources: Wang et al., "Self-Instruct" (2022, arXiv:2212.10560), which continues a list of eight,
two of them written before; Yu et al., "Large Language Model as Attributed Training Data Generator"
(2023, arXiv:2306.15895), whose attributes the model names first; Xu et al., "WizardLM" (2023,
arXiv:2304.12244) for the operations of evolve and for what a failed one looks like; Ge et al.,
"Scaling Synthetic Data Creation with 1,000,000,000 Personas" (2024, arXiv:2406.20094), whose
personas are made from texts.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from retort.spec import Expand
from retort.spec.expand import Way

# As many examples as the paper shows: six seeds and two that were written before; and as an
# illustration of a form, beside another task.
NUM_SEEDS, NUM_WRITTEN, NUM_SHOWN = 6, 2, 3
NUM_PERSONAS, NUM_PERSONA_SEEDS, NUM_ATTRIBUTES, NUM_VALUES = 5, 16, 5, 12
LIKE_THESE = "Here are prompts that people send to a language model, all of one kind:\n\n{examples}"
SEPARATE = (
    "Each prompt must be complete and understandable by itself, and ask something else than the "
    "others: change what happens and what is asked, not only names and numbers. Do not answer "
    "any of them. Reply with a numbered list of the new prompts and nothing else."
)
SELF_INSTRUCT = f"{LIKE_THESE}\n\nContinue the list with {{count}} new prompts. {SEPARATE}"
ATTRIBUTES = (
    f"{LIKE_THESE}\n\nName {NUM_ATTRIBUTES} attributes in which prompts of this kind can differ, "
    f"such as topic, length, style or difficulty, and for each up to {NUM_VALUES} different values "
    "that it can have. Reply with one JSON object and nothing else: its keys are the attributes, "
    "and each value is a list of short texts."
)
WITH_ATTRIBUTES = (
    f"{LIKE_THESE}\n\nWrite {{count}} new prompts of this kind with all of these attributes:\n"
    f"{{attributes}}\n\n{SEPARATE}"
)
PERSONAS = (
    f"{{example}}\n\nWho would be likely to send this prompt? Describe {NUM_PERSONAS} different "
    "persons in one sentence each: their work, interests and situation. Reply with a numbered list "
    "and nothing else."
)
WITH_PERSONA = (
    f"{LIKE_THESE}\n\nWrite {{count}} new prompts of this kind that the following person would "
    f"send:\n{{persona}}\n\n{SEPARATE}"
)
EVOLVE = (
    "Rewrite the prompt below. {operation} The new prompt must be of the same kind, reasonable, "
    "understandable and answerable by itself, and at most a few sentences longer. Do not answer "
    "it. Reply with the new prompt and nothing else.\n\n{example}"
)
OPERATIONS = {
    "constraints": "Add one more constraint or requirement to it.",
    "deepening": "Ask more deeply about what it asks, so that the answer needs more thought.",
    "concretizing": "Replace general concepts in it with more specific ones.",
    "reasoning": "Make it need one more step of reasoning than it does.",
    "breadth": "Write a new prompt in the same domain that is rarer than it, and about as long.",
}
# A rewriting that speaks of itself has failed (Xu et al., section 3.3).
FAILED = re.compile(
    r"\b(?:given|re-?written|created) prompt\b|#\s*(?:given|re-?written)", re.IGNORECASE
)


@dataclass(frozen=True)
class Source:
    """A prompt to write from: one of the job's own, or one that was written before."""

    id: str
    text: str
    is_written: bool = False


@dataclass(frozen=True)
class Writing:
    """A request to the writer: what it is told, and what its prompts come from.

    `num_asked` is how many prompts the reply shall hold, `detail` the attributes, the operation or
    the person that the request names.
    """

    id: str
    way: Way
    text: str
    parents: tuple[str, ...]
    num_asked: int = 1
    detail: str | None = None


@dataclass
class Material:
    """What the model said before it was asked for prompts: attributes with values, and persons,
    each with the prompt that it was made from."""

    attributes: dict[str, list[str]] = field(default_factory=dict)
    personas: list[tuple[str, str]] = field(default_factory=list)


def first_writings(knobs: Expand, seeds: Sequence[Source]) -> list[Writing]:
    """Returns the requests for attributes and persons, where the ways need them."""
    chosen, found = random.Random(f"{knobs.seed}/material"), list[Writing]()
    if "attributes" in knobs.by:
        shown = drawn(chosen, seeds, NUM_SEEDS + NUM_WRITTEN)
        text = ATTRIBUTES.format(examples=_listed(shown))
        found.append(Writing("attributes", "attributes", _told(text, knobs), _ids(shown)))
    if "persona" in knobs.by:
        for number, seed in enumerate(drawn(chosen, seeds, NUM_PERSONA_SEEDS)):
            text = _told(PERSONAS.format(example=_quoted(seed)), knobs)
            found.append(Writing(f"persona-{number}", "persona", text, (seed.id,), NUM_PERSONAS))
    return found


def write_from(
    knobs: Expand, way: Way, name: str, sources: Sequence[Source], material: Material
) -> Writing:
    """Returns a request of one way; its name decides what is drawn."""
    chosen = random.Random(f"{knobs.seed}/{name}")
    seeds = [source for source in sources if not source.is_written]
    if way == "evolve":
        parent, operation = chosen.choice(sources), chosen.choice(list(OPERATIONS))
        text = EVOLVE.format(operation=OPERATIONS[operation], example=_quoted(parent))
        return Writing(name, way, _told(text, knobs), (parent.id,), 1, operation)
    if way == "self_instruct":
        written = drawn(chosen, [s for s in sources if s.is_written], NUM_WRITTEN)
        shown = [*drawn(chosen, seeds, NUM_SEEDS + NUM_WRITTEN - len(written)), *written]
        text = SELF_INSTRUCT.format(examples=_listed(shown), count=knobs.per_request)
        return Writing(name, way, _told(text, knobs), _ids(shown), knobs.per_request)
    shown = drawn(chosen, seeds, NUM_SHOWN)
    parents, of_examples = _ids(shown), {"examples": _listed(shown), "count": knobs.per_request}
    if way == "attributes":
        values = material.attributes.items()
        detail = "; ".join(f"{key}: {chosen.choice(options)}" for key, options in values)
        text = WITH_ATTRIBUTES.format(attributes=detail, **of_examples)
    else:
        origin, detail = chosen.choice(material.personas)
        text = WITH_PERSONA.format(persona=detail, **of_examples)
        parents = tuple(dict.fromkeys((origin, *parents)))
    return Writing(name, way, _told(text, knobs), parents, knobs.per_request, detail)


def drawn(chosen: random.Random, sources: Sequence[Source], most: int) -> list[Source]:
    """Returns some of the sources in a random order, or all of fewer."""
    return chosen.sample(sources, min(most, len(sources)))


def _told(text: str, knobs: Expand) -> str:
    return f"{text}\n\n{knobs.instructions}" if knobs.instructions else text


def _ids(sources: Sequence[Source]) -> tuple[str, ...]:
    return tuple(source.id for source in sources)


def _listed(sources: Sequence[Source]) -> str:
    return "\n".join(f"{place}. {source.text}" for place, source in enumerate(sources, start=1))


def _quoted(source: Source) -> str:
    return f"<prompt>\n{source.text}\n</prompt>"
