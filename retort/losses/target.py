"""What the teacher gave for each supervised token. Every tensor in it has one row a token, so that
a batch can be cut between any two tokens."""

# N supervised tokens of a batch, V vocabulary, K teacher top-k, H the teacher's width, C labels
from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True)
class Target:
    """What the teacher gave for each supervised token; the stored signal is at temperature 1.

    The teacher is stored (`ids_NK`, `logprobs_NK` and `tail_N`, the log-probability of all other
    ids) or dense: `teacher_logits_NV`, logits or log-probabilities over the student's own ids; the
    dense one counts where both are given. `teacher_hidden_NH` are a live teacher's last hidden
    states, of which `retort.train.head` makes dense logits a chunk at a time. `choices_NC` are the
    ids with which the labels of a closed set begin, at the token where the label is written, -1
    where there is none (see `retort.losses.choices`). No id stands twice in a row.
    """

    labels_N: Tensor
    ids_NK: Tensor | None = None
    logprobs_NK: Tensor | None = None
    tail_N: Tensor | None = None
    teacher_logits_NV: Tensor | None = None
    teacher_hidden_NH: Tensor | None = None
    choices_NC: Tensor | None = None

    def part(self, start: int, end: int) -> "Target":
        """Returns the tokens from `start` to before `end`, as views."""
        whole = ((field.name, getattr(self, field.name)) for field in fields(self))
        return Target(**{name: None if t is None else t[start:end] for name, t in whole})
