"""From the spec's losses to the terms that the head computes."""

from functools import partial

from retort.plugins import find_function
from retort.spec import JobSpec, Loss
from retort.train.head import Term
from retort.train.objective import agreement


def terms_of(spec: JobSpec) -> list[Term]:
    """Returns the objective's terms; last, of weight 0, how often teacher and student agree."""
    terms = [term_of(loss) for loss in spec.losses if loss.weight > 0]
    return [*terms, Term("agreement", agreement, 0.0)] if spec.distils else terms


def term_of(loss: Loss) -> Term:
    """Returns a term of the objective: its function with temperature and options bound to it."""
    function = find_function("loss", loss.name, "retort.losses")
    return Term(
        loss.name, partial(function, temperature=loss.temperature, **loss.options), loss.weight
    )
