"""The objective's terms that compare what lies inside both models: hidden states and attention.

Forward hooks keep what some modules of each give out. A projector, where widths differ, belongs to
the objective: it trains with the student and is in the checkpoints, but never in the saved student.
"""

# B batch, T time, N supervised tokens, D width of a vector
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from retort.errors import SpecError, StageError, did_you_mean
from retort.losses import Target, attention_relations, hidden_states
from retort.losses.distributions import exact
from retort.losses.features import Vectors
from retort.spec import JobSpec, Loss
from retort.stages.train.head import Sums, Term
from retort.stages.train.objective import Objective, agreement, last_hidden
from retort.store import model_folder

# What modules give out, by their names.
States = dict[str, Tensor]
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
# The families one projection of which gives queries, keys and values, one after the other.
FUSED = {"phi3": "qkv_proj", "phi4_multimodal": "qkv_proj", "gpt2": "c_attn"}
DISTANCES = ("mse", "cosine")


@dataclass(frozen=True)
class Tap:
    """Some of what a module gives out: its columns from `start` to before `end`."""

    module: str
    start: int = 0
    end: int | None = None

    def of(self, states: States) -> Tensor:
        """Returns it, of what was kept. Raises `StageError` where the module was not called."""
        if self.module not in states:
            raise StageError(
                f"train.losses: {self.module} takes no part in the model's forward pass, so there "
                "is nothing to compare; name other layers"
            )
        return states[self.module][..., self.start : self.end]


@dataclass(frozen=True)
class FeatureTerm(Term):
    """A term whose `loss` compares what the student's taps give with what the teacher's do."""

    loss: Callable[..., Tensor]
    taps: tuple[tuple[Tap, Tap], ...] = ()

    def __str__(self) -> str:
        compared = (f"{own.module} with {other.module}" for own, other in self.taps)
        return f"{self.name} compares {', '.join(dict.fromkeys(compared))}"

    def of(self, side: int, states: States) -> list[Tensor]:
        """Returns what the taps of the student (0) or the teacher (1) give."""
        return [pair[side].of(states) for pair in self.taps]


class Recorder:
    """Keeps what some modules of a model give out, while it is asked to."""

    def __init__(self, model: Any, side: int, terms: list[FeatureTerm]):
        self._states: States | None = None
        plain = _plain(model)
        for name in sorted({pair[side].module for term in terms for pair in term.taps}):
            plain.get_submodule(name).register_forward_hook(partial(self._keep, name))

    def _keep(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._states is not None:
            self._states[name] = output[0] if isinstance(output, tuple) else output

    @contextlib.contextmanager
    def recording(self) -> Iterator[States]:
        """Gives what is kept while it is open; what checkpointing computes again comes later."""
        states: States = {}
        self._states = states
        try:
            yield states
        finally:
            self._states = None


class FeatureObjective(Objective):
    """An objective with terms over features besides; `teacher` records what the teacher gives."""

    def __init__(self, plain: Objective, terms: list[FeatureTerm], teacher: Any, seed: int):
        head, own, vocabulary, teacher_head = plain.parts
        super().__init__(plain.model, head, [*own, *terms], vocabulary, teacher_head)
        self.student = Recorder(plain.model, 0, terms)
        self.teacher = Recorder(teacher, 1, terms)
        self.projectors = nn.ModuleDict()
        self._open_projectors(terms, teacher, torch.Generator().manual_seed(seed))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _open_projectors(
        self, terms: list[FeatureTerm], teacher: Any, random: torch.Generator
    ) -> None:
        """Tries both models on a token, and makes a projector where hidden states differ in width.

        Raises `StageError` for a module that is not called.
        """
        found = []
        for model, recorder in ((self.model, self.student), (teacher, self.teacher)):
            ids_BT = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
            with recorder.recording() as states:
                last_hidden(model, ids_BT)
            found.append(states)
        for term in terms:
            pairs = zip(term.of(0, found[0]), term.of(1, found[1]), strict=True)
            for number, (own, other) in enumerate(pairs):
                narrow, wide = own.shape[-1], other.shape[-1]
                if term.name == "hidden_states" and narrow != wide:
                    layer = nn.Linear(narrow, wide, bias=False)
                    nn.init.normal_(layer.weight, std=narrow**-0.5, generator=random)
                    self.projectors[str(number)] = layer.to(own.device)

    def forward(  # noqa: PLR0913, PLR0917 - as its base
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None,
        places: tuple[Tensor, Tensor],
        target: Target,
        terms: list[Term] | None = None,
        position_ids_BT: Tensor | None = None,
        states: States | None = None,
    ) -> Sums:
        """Returns the sums of the terms; `states` are what the teacher gave for the same batch."""
        terms = terms or self.parts[1]
        # One term at least, of weight 0, gives every weight a gradient: DDP waits for each.
        plain = [term for term in terms if not isinstance(term, FeatureTerm)]
        plain = plain or [Term("agreement", agreement, 0.0)]
        inputs = (input_ids_BT, attention_mask_BT, places, target, plain, position_ids_BT)
        with self.student.recording() as own:
            sums = super().forward(*inputs)
        rest, values, total_ = iter(sums.values_L), [], sums.total_
        with torch.autocast(input_ids_BT.device.type, enabled=False):
            for term in terms:
                if not isinstance(term, FeatureTerm):
                    values.append(next(rest))
                    continue
                value_ = self._value(term, own, states or {}, (*places, position_ids_BT))
                total_ = total_ + term.weight * value_
                values.append(value_.detach().to(total_.dtype))
            total_ = total_ + 0 * sum(weight.sum() for weight in self.projectors.parameters())
        return Sums(total_, torch.stack(values))

    def _value(self, term: FeatureTerm, own: States, other: States, where: Any) -> Tensor:
        """Returns a term's sum over the tokens that `where` gives: rows, times and positions."""
        rows_N, times_N, position_ids_BT = where
        student, teacher = term.of(0, own), term.of(1, other)
        if term.name == "attention_relations":
            vectors = (Vectors(x, (rows_N, times_N), position_ids_BT) for x in (student, teacher))
            return term.loss(*vectors)
        student = [x_BTD[rows_N, times_N] for x_BTD in student]
        for number, projector in self.projectors.items():
            student[int(number)] = projector(exact(student[int(number)]))
        return term.loss(student, [x_BTD[rows_N, times_N] for x_BTD in teacher])


def feature_terms(spec: JobSpec) -> list[FeatureTerm]:
    """Returns the terms over features of a job's objective, by its models' configurations.

    Raises `SpecError` for options that no model has, and for a family whose attention is unknown.
    """
    losses = [loss for loss in spec.losses if loss.compares_features]
    models = (
        _skeleton(spec.base, "train.student"),
        _skeleton(spec.generate.teacher, "generate.teacher"),
    )
    makers = {"hidden_states": _hidden_states, "attention_relations": _attention_relations}
    return [makers[loss.name](loss, *models) for loss in losses if loss.weight > 0]


def _skeleton(name: str, key: str) -> Any:
    """Returns a model without its weights."""
    config = transformers.AutoConfig.from_pretrained(model_folder.locate(name, key))
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def _hidden_states(loss: Loss, student: Any, teacher: Any) -> FeatureTerm:
    distance = loss.options.get("distance", "mse")
    if distance not in DISTANCES:
        near = did_you_mean(str(distance), DISTANCES)
        raise SpecError(
            f"train.losses: hidden_states: distance: {distance}{near}; it is one of: "
            f"{', '.join(DISTANCES)}"
        )
    num_own, num_other = len(_blocks(student)), len(_blocks(teacher))
    auto = [(m, max(1, m * num_other // num_own)) for m in range(1, num_own + 1)]
    pairs = _pairs(loss, auto, student, teacher)
    taps = tuple((Tap(own), Tap(other)) for own, other in pairs)
    return FeatureTerm(loss.name, partial(hidden_states, distance=distance), loss.weight, taps)


def _attention_relations(loss: Loss, student: Any, teacher: Any) -> FeatureTerm:
    taps = tuple(
        both
        for own, other in _pairs(loss, [(-1, -1)], student, teacher)
        for both in zip(_projections(student, own), _projections(teacher, other), strict=True)
    )
    widths = {_width(s, pair[side]) for pair in taps for side, s in enumerate((student, teacher))}
    heads = _heads(loss, widths, student.config.get_text_config().num_attention_heads)
    return FeatureTerm(
        loss.name, partial(attention_relations, relation_heads=heads), loss.weight, taps
    )


def _heads(loss: Loss, widths: set[int], most: int) -> int:
    """Returns into how many heads vectors of all these widths are split."""
    heads = loss.options.get("relation_heads", "auto")
    allowed = [n for n in range(1, min(widths) + 1) if not any(width % n for width in widths)]
    if heads == "auto":
        return max(n for n in allowed if n <= most)
    if heads not in allowed or isinstance(heads, bool):
        raise SpecError(
            f"train.losses: attention_relations: relation_heads: {heads} does not divide the "
            f"widths {', '.join(map(str, sorted(widths)))} of queries, keys and values; it is auto "
            f"or one of: {', '.join(map(str, allowed))}"
        )
    return int(heads)


def _pairs(
    loss: Loss, auto: list[tuple[int, int]], student: Any, teacher: Any
) -> list[tuple[str, str]]:
    """Returns the modules of each pair of layers."""
    layers = loss.options.get("layers", "auto")
    is_list = isinstance(layers, list | tuple) and layers
    if layers != "auto" and not (
        is_list and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in layers)
    ):
        raise SpecError(
            f"train.losses: {loss.name}: layers: {layers}; it is auto, or pairs of the student's "
            "and the teacher's layer, by number or name, such as [[1, 2], [2, 4]]"
        )
    where = f"train.losses: {loss.name}: layers"
    return [
        (
            _layer(student, own, f"{where}: the student"),
            _layer(teacher, other, f"{where}: the teacher"),
        )
        for own, other in (auto if layers == "auto" else layers)
    ]


def _layer(model: Any, layer: Any, who: str) -> str:
    """Returns the name of the module that a number (from 1, or from the end) or name stands for."""
    blocks = _blocks(model)
    if isinstance(layer, str):
        modules = [name for name, _ in model.named_modules() if name]
        named = [name for name in modules if f".{name}".endswith(f".{layer}")]
        if len(named) != 1:
            raise SpecError(
                f"{who} has {len(named)} modules '{layer}'{did_you_mean(layer, modules)}; take a "
                f"number from 1 to {len(blocks)}, or a whole name such as {blocks[0]}"
            )
        return str(named[0])
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 < abs(layer) <= len(blocks):
        raise SpecError(
            f"{who} has no layer {layer}; its layers are 1 to {len(blocks)}, or -1 for the last to "
            f"-{len(blocks)}"
        )
    return blocks[layer - 1 if layer > 0 else layer]


def _blocks(model: Any) -> list[str]:
    """Returns the names of a model's layers, in order."""
    number = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return [f"{name}.{index}" for index in range(number)]
    raise SpecError(
        f"train.losses: the layers of {type(model).__name__} are not found, so its hidden states "
        "and attention cannot be compared; take the loss out"
    )


def _projections(model: Any, layer: str) -> list[Tap]:
    """Returns the taps of a layer's queries, keys and values."""
    inside = [name for name, _ in model.get_submodule(layer).named_modules()]
    config = model.config.get_text_config()

    def named(last: str | None) -> list[str]:
        return [f"{layer}.{name}" for name in inside if name.rpartition(".")[2] == last]

    found = [named(name) for name in PROJECTIONS]
    if all(len(names) == 1 for names in found):
        return [Tap(name) for (name,) in found]
    fused = named(FUSED.get(config.model_type))
    if len(fused) != 1:
        raise SpecError(
            f"train.losses: attention_relations finds no queries, keys and values in {layer} of "
            f"{type(model).__name__} ({config.model_type}): it needs {', '.join(PROJECTIONS)}, or "
            f"the one projection of {', '.join(FUSED)}; take the loss out, or compare hidden_states"
        )
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    ends = (0, heads * size, (heads + shared) * size, (heads + 2 * shared) * size)
    return [Tap(fused[0], *bounds) for bounds in pairwise(ends)]


def _width(model: Any, tap: Tap) -> int:
    """Returns the number of columns that a tap of a linear layer gives."""
    layer = model.get_submodule(tap.module)
    whole = layer.weight.shape[1 if isinstance(layer, Conv1D) else 0]
    return len(range(whole)[tap.start : tap.end])


def _plain(model: Any) -> Any:
    """Returns the model without the wrapper of its adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
